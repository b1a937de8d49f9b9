"""The Dockerfile, as far as it can be tested without building an image.

It is linted, and its step that installs the package runs in a clean virtual environment in which the tests' own
dependencies can be seen: so it downloads nothing, while pip still compares them with constraints.txt.
"""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
HADOLINT = Path(sys.executable).parent / "hadolint"


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile with their arguments, continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "")
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines()]


def named(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def copied() -> list[tuple[list[str], str]]:
    """Sources and destination of each COPY."""
    return [(rest.split()[:-1], rest.split()[-1]) for rest in named("COPY")]


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """A folder with what the COPY instructions bring into the image."""
    folder = tmp_path_factory.mktemp("image")
    for sources, target in copied():
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(
                    ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
                )
            else:
                shutil.copy(ROOT / source, folder / target)
    return folder


def install(context: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the step that installs the package, as /bin/sh of an image does."""
    (step,) = [rest for rest in named("RUN") if "pip install" in rest]
    return subprocess.run(
        ["/bin/sh", "-c", step],
        cwd=context,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_hadolint_finds_nothing():
    done = subprocess.run([HADOLINT, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_last_user_is_not_root_and_is_the_pods_user():
    user = named("USER")[-1]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)  # by number: Kubernetes cannot tell who a name is
    (added,) = [rest for rest in named("RUN") if "useradd" in rest]
    assert f"--uid {user.split(':')[0]} " in added
    for document in yaml.safe_load_all((ROOT / "jobs/kuberay.yaml").read_text()):
        spec = document["spec"]
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]] if document["kind"] == "RayCluster" else [spec]
        for pod in (group["template"]["spec"] for group in groups if "template" in group):
            context = pod["securityContext"]
            assert context["runAsNonRoot"] and f"{context['runAsUser']}:{context['runAsGroup']}" == user


def test_what_is_copied_exists_and_nothing_else_reaches_the_builder():
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert patterns[0] == "*"
    let_through = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    sources = [source for sources, _ in copied() for source in sources]
    assert let_through == set(sources)
    assert all((ROOT / source).exists() for source in sources)
    assert any(fnmatch.fnmatch("platform/rayreid/__pycache__", pattern) for pattern in patterns[1:])


def test_no_address_of_a_package_index_is_in_it():
    assert "://" not in (ROOT / "Dockerfile").read_text()
    assert dict(rest.split("=") for rest in named("ARG")) == {"DEVICE": "cuda", "TORCH_INDEX": ""}


@pytest.mark.parametrize(
    ("device", "told"),
    [("cpu", "TORCH_INDEX: is not set: DEVICE=cpu needs it"), ("tpu", "DEVICE=tpu: say cuda or cpu")],
)
def test_a_wrong_build_argument_ends_the_step_with_one_line(context, device, told):
    done = install(context, DEVICE=device, TORCH_INDEX="")
    assert done.returncode != 0 and done.stdout == ""
    assert told in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_package_is_installed_in_a_clean_environment_and_runs_elsewhere(context, tmp_path):
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "tests.pth").write_text(sysconfig.get_path("purelib"))  # dependencies; a venv's own packages come first
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = install(context, DEVICE="cuda", TORCH_INDEX="", PATH=path, PIP_FORCE_REINSTALL="", PYTHONPATH="")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Successfully installed rayreid" in done.stdout and "Downloading" not in done.stdout, done.stdout[-3000:]
    code = "import rayreid; print(rayreid.__file__)"
    outside = {"cwd": tmp_path, "env": {**os.environ, "PATH": path, "PYTHONPATH": ""}, "text": True, "timeout": 120}
    where = subprocess.run(["python", "-c", code], capture_output=True, **outside)
    assert where.stdout.startswith(str(site)), where.stdout + where.stderr
    said = subprocess.run([environment / "bin/rayreid", "--help"], capture_output=True, **outside)
    assert said.returncode == 0 and "pre-training" in said.stdout, said.stderr[-2000:]
