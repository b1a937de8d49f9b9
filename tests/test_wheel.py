"""The wheel alone: built, installed into an environment of its own, and used in a folder that is no checkout."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tiny_experiment import TINY

ROOT = Path(__file__).parent.parent
EXPERIMENTS = {path.relative_to(ROOT).as_posix() for path in (ROOT / "experiments").rglob("*.yaml")}
SIZE = [64, 32]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The folder with the wheel and the sdist, built by the backend of this environment."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def command(distributions, tmp_path_factory):
    """`command(*arguments, status=0)` runs the wheel's `rayreid`, and returns what it printed.

    The environment takes the dependencies of this one, but not the package itself: a path file names the folder of the
    installed packages without executing the path files in it, one of which leads to the checkout.
    """
    (wheel,) = distributions.glob("*.whl")
    home = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home / "venv"], check=True, timeout=300)
    python = home / "venv/bin/python"
    (packages,) = (home / "venv/lib").glob("python*/site-packages")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet", wheel],
        check=True,
        timeout=300,
    )
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAYREID_", "PYTHONPATH"))}

    def run(*arguments: str, status: int = 0) -> str:
        ran = subprocess.run(
            [home / "venv/bin/rayreid", *arguments],
            cwd=home,
            env={**environment, "MLFLOW_TRACKING_URI": ""},
            capture_output=True,
            text=True,
            timeout=540,
        )
        assert ran.returncode == status, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    run.home, run.python = home, python
    return run


def test_the_distributions_hold_the_experiment_files_and_nothing_of_this_machine(distributions):
    (wheel,) = distributions.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"rayreid/{name}" for name in EXPERIMENTS} <= names
    assert {"rayreid/py.typed", "rayreid/evaluation/templates/page.css"} <= names
    assert {name.split("/")[0] for name in names} == {"rayreid", "rayreid-0.1.0.dist-info"}
    (sdist,) = distributions.glob("*.tar.gz")
    listed = subprocess.run(["tar", "tzf", sdist], capture_output=True, text=True, check=True).stdout.split()
    inside = {name.split("/", 1)[1] for name in listed}
    assert EXPERIMENTS | {"README.md", "constraints.txt", "CITATION.cff"} <= inside
    assert not {".git", ".ci/run", ".venv"} & inside


def test_a_wheel_of_the_sdist_is_the_same(distributions, tmp_path):
    (wheel,), (sdist,) = distributions.glob("*.whl"), distributions.glob("*.tar.gz")
    subprocess.run(["tar", "xzf", sdist, "-C", tmp_path], check=True)
    (source,) = tmp_path.iterdir()
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=source, check=True, timeout=300
    )
    (again,) = tmp_path.glob("*.whl")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_the_package_is_the_wheel_s(command):
    program = "import rayreid; print(rayreid.__file__)"
    ran = subprocess.run([command.python, "-c", program], cwd=command.home, capture_output=True, text=True, check=True)
    assert Path(ran.stdout.strip()).is_relative_to(command.home / "venv")


def test_its_experiment_files_are_found_and_copied(command):
    assert "--root" in command("demo", "--help")
    assert "unknown key 'select.fracton'" in command("demo", "select.fracton=1", status=2)
    assert f"mine: {len(EXPERIMENTS)} files written" in command("init", "mine")
    assert "name: demo" in command("config", "mine/demo.yaml")


@pytest.mark.ray
@pytest.mark.thorough
def test_the_demo_runs_from_it(command):
    """The demo's own file, made small enough for a minute."""
    small = [
        "compare=[{label: random half, select.strategy: random}]",
        f"pool.options={{part: pool, images: 120, size: {SIZE}}}",
        f"target.options={ {**TINY['target']['options']} }".replace("'", ""),
        "backbone.depth=1",
        "pretrain.steps=2",
        "pretrain.batch_size=32",
        "pretrain.hidden_dim=64",
        "pretrain.probe_every=0",
        "finetune.epochs=1",
        "finetune.identities=4",
    ]
    shown = command("demo", *small, "--root", "results")
    assert "random half" in shown and "mlflow ui" in shown
    assert list((command.home / "results").glob("finetune/*/model.safetensors"))
    assert not (command.home / "outputs").exists()
