"""The arrows between the floors, as in `docs/architecture.md`; and that `platform` stays the standard library's."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
PACKAGE = REPO / "platform" / "rayreid"

GROUND = {"config", "recipes", "experiment_file", "artifacts", "files", "lease", "journal", "outbox", "checkout"}
GROUND |= {"errors", ""}
STAGES_ONLY = {"tracking", "tracking_store", "outage", "cluster"}
BASE_ROOMS = {"data", "models", "training", "neighbours"}
UPPER_ROOMS = {"pretraining", "selection", "reid", "evaluation"}
DOMAIN = BASE_ROOMS | UPPER_ROOMS
DOORS = {"cli"}
ROOMS = GROUND | STAGES_ONLY | DOMAIN | DOORS | {"stages"}


def imports(tree: ast.Module) -> Iterator[str]:
    """Every module that a file imports, wherever in it; of `from a import b` both `a` and `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules() -> dict[str, ast.Module]:
    """All files of the package, parsed, by dotted name without the package's own."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix("__init__").rstrip(".")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def room_of(module: str) -> str:
    return module.partition(".")[0]


def rooms_imported(tree: ast.Module) -> set[str]:
    """Rooms (or ground modules) of the package that a file imports."""
    found = set()
    for name in imports(tree):
        first, _, rest = name.partition(".")
        if first == "rayreid":
            room = room_of(rest)
            found.add(room if room in ROOMS else "")  # `from rayreid import __version__`
    return found


def libraries(tree: ast.Module) -> set[str]:
    return {name.partition(".")[0] for name in imports(tree)}


def allowed(room: str) -> set[str]:
    if room in GROUND:
        return GROUND
    if room in STAGES_ONLY:
        return GROUND | STAGES_ONLY
    if room in BASE_ROOMS:
        return GROUND | BASE_ROOMS
    if room in UPPER_ROOMS:
        return GROUND | BASE_ROOMS | {room}
    if room == "stages":
        return GROUND | STAGES_ONLY | DOMAIN | {"stages"}
    return GROUND | DOORS | {"stages"}


def test_every_module_stands_on_a_known_floor():
    assert len(MODULES) > 40
    assert {room_of(name) for name in MODULES} == ROOMS


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_a_room_imports_only_from_its_own_floor_and_below(room):
    for name, tree in MODULES.items():
        if room_of(name) == room:
            assert rooms_imported(tree) <= allowed(room), name


def test_the_arrows_are_seen_also_in_functions():
    tree = ast.parse(
        "def f():\n    from rayreid.reid import losses\n    import rayreid.stages.score\n    import ray.data"
    )
    assert rooms_imported(tree) == {"reid", "stages"}
    assert "ray" in libraries(tree)


def test_rooms_do_not_import_one_another_in_a_circle():
    arrows = {room: set() for room in DOMAIN}
    for name, tree in MODULES.items():
        if room_of(name) in DOMAIN:
            arrows[room_of(name)] |= (rooms_imported(tree) & DOMAIN) - {room_of(name)}
    while arrows:
        free = [room for room, needed in arrows.items() if not needed & arrows.keys()]
        assert free, f"a circle among {arrows}"
        for room in free:
            del arrows[room]


def test_ray_and_mlflow_are_known_to_the_stages_only():
    for name, tree in MODULES.items():
        if room_of(name) not in {"stages", *STAGES_ONLY}:
            assert not libraries(tree) & {"ray", "mlflow"}, name


def test_faiss_is_never_imported_with_a_module():
    for name, tree in MODULES.items():
        if room_of(name) != "stages":
            top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
            assert "faiss" not in libraries(top), name


def test_jobs_are_doors():
    jobs = sorted((REPO / "jobs").glob("*.py"))
    assert jobs
    for path in jobs:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert rooms_imported(tree) <= GROUND | DOORS | {"stages"}, path.name
        assert not libraries(tree) - {"rayreid", "sys", "pathlib"}, path.name


def test_no_module_is_a_drawer_for_everything():
    for name in MODULES:
        assert not {"utils", "helpers", "misc", "common"} & set(name.split(".")), name


def run_python(*arguments: str, **environment: str) -> str:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    done = subprocess.run([sys.executable, *arguments], cwd=REPO, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_platform_has_no_init():
    assert (REPO / "platform").is_dir()
    assert not (REPO / "platform" / "__init__.py").exists()


def test_platform_is_the_standard_library_s_from_the_repository_root():
    system = run_python("-c", "import platform; print(platform.system())")
    assert system in {"Linux", "Darwin", "Windows"}
    assert run_python("-m", "platform").startswith(("Linux", "macOS", "Windows"))


def test_the_domain_can_be_imported_without_ray_mlflow_and_faiss():
    domain = sorted(f"rayreid.{name}" for name in MODULES if room_of(name) in DOMAIN)
    program = (
        "import importlib, sys\n"
        f"for name in {domain!r}: importlib.import_module(name)\n"
        "print(sorted({'ray', 'mlflow', 'faiss'} & set(sys.modules)))"
    )
    assert run_python("-c", program, PYTHONPATH=str(REPO / "platform")) == "[]"
