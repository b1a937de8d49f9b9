import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
FOLDERS = {"platform", "experiments", "jobs", "tests", "benchmarks", "docs"}
FILES = {
    "cluster.yaml",
    "pyproject.toml",
    "constraints.txt",
    "Makefile",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
    "CITATION.cff",
    "Dockerfile",
}
MIB = 2**20
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.fixture(scope="module")
def files():
    """What the repository holds, or would hold with the next commit, relative to its root."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listed.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def pins():
    """The constraints: requirement by normalised name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    listed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert len({requirement.name for requirement in listed}) == len(listed)
    return {requirement.name: requirement for requirement in listed}


@pytest.fixture(scope="module")
def direct():
    """What pyproject.toml names, all extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = [Requirement(line) for lines in [project["dependencies"], *extras.values()] for line in lines]
    assert {extra for one in named if one.name == project["name"] for extra in one.extras} <= set(extras)
    return [one for one in named if one.name != project["name"] and one not in map(Requirement, extras["faiss-cpu"])]


def test_the_root_holds_what_it_should(files):
    folders = {path.parts[0] for path in files if len(path.parts) > 1}
    single = {path.name for path in files if len(path.parts) == 1}
    assert {name for name in folders if not name.startswith(".")} == FOLDERS
    assert {name for name in single if not name.startswith(".")} == FILES


def test_no_large_file_outside_the_golden_numbers(files):
    large = [path for path in files if (ROOT / path).stat().st_size > MIB]
    assert [str(path) for path in large if path.parts[:2] != ("tests", "golden")] == []


def test_the_readme_opens_with_the_two_commands():
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:25])
    for target in ("demo", "test"):
        assert f"make {target}" in first
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_links_between_the_documents_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_readmes_experiment_loads(tmp_path):
    from rayreid.config.loading import load_experiment, rows

    example = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    (tmp_path / "mine.yaml").write_text(example)
    (tmp_path / "defaults.yaml").write_text((ROOT / "experiments/defaults.yaml").read_text())
    assert len(rows(load_experiment(tmp_path / "mine.yaml"))) > 1


def test_every_direct_dependency_is_pinned(direct, pins):
    # Of the two builds of faiss one serves each platform; the other's version is not known here.
    missing = {canonicalize_name(requirement.name) for requirement in direct} - set(pins) - {"faiss-cpu"}
    assert missing == set()


def test_pins_are_exact_normalised_and_allowed(direct, pins):
    for name, pin in pins.items():
        (specifier,) = pin.specifier
        assert specifier.operator == "==", pin
        assert name == canonicalize_name(name)
    for requirement in direct:
        pin = pins.get(canonicalize_name(requirement.name))
        if pin is not None:
            (specifier,) = pin.specifier
            assert requirement.specifier.contains(specifier.version), f"{pin} against {requirement}"
            assert str(pin.marker) == str(requirement.marker), f"{pin} against {requirement}"


def test_the_builds_of_faiss_share_the_platforms_out(direct):
    markers = {r.name: r.marker for r in direct if r.name.startswith("faiss-")}
    for system, machine in [("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("darwin", "x86_64")]:
        environment = {**default_environment(), "sys_platform": system, "platform_machine": machine}
        chosen = [name for name, marker in markers.items() if marker.evaluate(environment)]
        assert len(chosen) == 1, f"{system} {machine}: {chosen}"


def test_hooks_are_local_and_their_tools_are_installed(direct):
    # A hook of another repository would be downloaded, in a version that constraints.txt does not hold.
    dev = {canonicalize_name(requirement.name) for requirement in direct}
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    tools = set()
    for hook in config["repos"][0]["hooks"]:
        program = Path(hook["entry"].split()[0])
        assert (program.parent, hook["language"]) == (Path(".venv/bin"), "system")
        tools.add(program.name)
    assert tools == {"ruff", "mypy", "codespell", "lint-imports"}
    assert {"import-linter", *tools} - {"lint-imports"} <= dev


def test_the_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (citation["title"], citation["version"]) == (project["name"], project["version"])
    assert citation["license"] == project["license"]
    assert citation["authors"] == project["authors"]
    assert [paper["identifiers"][0]["value"] for paper in citation["references"]] == ["arXiv:2111.12084"]


def test_the_changelog_and_the_package_name_this_version():
    from rayreid import __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    released = re.findall(r"^## \[(\d\S*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == (__version__, str(citation["date-released"]))
    assert project["version"] == __version__


def test_workflows_run_targets_that_there_are():
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    jobs = {path.stem: list(yaml.safe_load(path.read_text())["jobs"].values()) for path in WORKFLOWS}
    steps = [step for some in jobs.values() for job in some for step in job["steps"]]
    assert {"lint", "tests", "docs", "thorough"} == set(jobs)
    assert {step["run"].removeprefix("make ") for step in steps if "run" in step} <= targets
    local = {step["uses"] for step in steps if step.get("uses", "").startswith("./")}
    assert all((ROOT / path / "action.yml").is_file() for path in local)
    assert all(re.fullmatch(r"\./\S+|[\w-]+/[\w-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    assert all(job["timeout-minutes"] <= (300 if name == "thorough" else 60) for name in jobs for job in jobs[name])


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_an_issue_template_asks_named_questions(name):
    template = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())
    assert template["name"] and template["description"]
    questions = [part for part in template["body"] if part["type"] != "markdown"]
    assert all(part["attributes"]["label"] for part in questions)
    assert len({part["id"] for part in questions}) == len(questions) > 0


def test_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[1].split()
    assert set(targets) == set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    rows = [re.match(r"  make ([a-z-]+) +\S", line) for line in listed.splitlines()]
    assert sorted(row[1] for row in rows) == sorted(targets)


STAND_IN = """#!/bin/sh
# In place of Python and of uv: makes an environment whose Python is this script, too, and records what it is asked.
echo "$0 $*" >> calls
case "$*" in
    *"pip install"*) test ! -e broken ;;
    *venv*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
esac
"""


@pytest.fixture
def install(tmp_path):
    """A function that runs `make install` in a copy, with or without uv: (output, recorded calls, succeeded)."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    for name in ("python3", "uv"):
        (tmp_path / "bin" / name).write_text(STAND_IN)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(uv):
        (tmp_path / "calls").unlink(missing_ok=True)
        if not uv:
            (tmp_path / "bin" / "uv").unlink()
        system = "/usr/bin:/bin"
        if shutil.which("uv", path=system) and not uv:
            pytest.skip("uv is installed for the whole system")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "UV"))}
        environment |= {"PATH": f"{tmp_path / 'bin'}:{system}", "MAKEFLAGS": ""}
        ran = subprocess.run(["make", "install"], cwd=tmp_path, env=environment, capture_output=True, text=True)
        return ran.stdout, (tmp_path / "calls").read_text().replace(str(tmp_path), "."), ran.returncode == 0

    return run


@pytest.mark.parametrize(("uv", "venv", "pip"), [
    (True, "./bin/uv venv", "./bin/uv pip install --python .venv/bin/python"),
    (False, "./bin/python3 -m venv .venv", ".venv/bin/python -m pip install"),
])  # fmt: skip
def test_install_says_what_it_does_and_keeps_to_the_constraints(install, tmp_path, uv, venv, pip):
    said, calls, succeeded = install(uv)
    assert succeeded and (tmp_path / ".venv/.ready").exists()
    first, second = calls.splitlines()
    assert first.startswith(venv) and second.startswith(pip)
    assert second.endswith("--constraint constraints.txt --editable .[dev]") and "quiet" not in second
    assert said.startswith("Installing rayreid") and f"with {'uv' if uv else 'pip'}" in said
    assert re.search(r"about \d minutes?\).*about \d GB", said, re.DOTALL)


@pytest.mark.parametrize("uv", [True, False])
def test_an_installation_that_fails_is_not_taken_for_complete(install, tmp_path, uv):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/.ready").touch()  # of an earlier installation
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(tmp_path / name, (2**32, 2**32))
    (tmp_path / "broken").touch()
    *_, succeeded = install(uv)
    assert not succeeded and not (tmp_path / ".venv/.ready").exists()


def test_ray_is_bounded_while_private_parts_of_it_are_used(direct):
    (ray,) = (requirement for requirement in direct if requirement.name == "ray")
    assert not ray.specifier.contains("2.61.0") and ray.specifier.contains("2.60.9")


def test_the_wheel_takes_the_whole_package_and_the_experiment_files():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["sources"] == {"platform/rayreid": "rayreid", "experiments": "rayreid/experiments"}
    assert wheel["only-include"] == list(wheel["sources"])  # tests/test_wheel.py looks into a wheel
    assert wheel["dev-mode-dirs"] == ["platform"]
