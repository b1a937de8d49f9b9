"""What import-linter (`[tool.importlinter]` in `pyproject.toml`) cannot say of the package's structure."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).parent.parent
PACKAGE = REPO / "platform" / "rayreid"

DOMAIN = {"data", "models", "training", "neighbours", "pretraining", "selection", "reid", "evaluation"}


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


def libraries(tree: ast.Module) -> set[str]:
    return {name.partition(".")[0] for name in imports(tree)}


def test_faiss_is_never_imported_with_a_module():
    for name, tree in MODULES.items():
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        assert "faiss" not in libraries(top), name


def test_private_parts_of_ray_stand_in_one_module():
    for name, tree in MODULES.items():
        parts = {part for module in imports(tree) if module.split(".")[0] == "ray" for part in module.split(".")}
        constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        methods = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        private = {part for part in parts if part.startswith("_") or part in ("v2", "internal")}
        private |= {"node:__internal_head__"} & constants | {"_register_sigint_handler"} & methods
        assert not private or name == "execution.ray_internals", f"{name}: {private}"


def test_jobs_are_doors():
    jobs = sorted((REPO / "jobs").glob("*.py"))
    assert jobs
    for path in jobs:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert {name.split(".")[1] for name in imports(tree) if name.startswith("rayreid.")} <= {"cli"}, path.name
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


def test_the_domain_can_be_imported_without_ray_mlflow_faiss_and_pydantic():
    domain = sorted(f"rayreid.{name}" for name in MODULES if room_of(name) in DOMAIN)
    program = (
        "import importlib, sys\n"
        f"for name in {domain!r}: importlib.import_module(name)\n"
        "print(sorted({'ray', 'mlflow', 'faiss', 'pydantic'} & set(sys.modules)))"
    )
    assert run_python("-c", program, PYTHONPATH=str(REPO / "platform")) == "[]"


def test_tasks_that_ask_for_cpus_run_outside_the_placement_group_of_a_trial():
    found = 0
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "ray.remote"):
                continue
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if options.get("num_cpus") == "0":  # needs no room in a placement group
                continue
            found += 1
            assert options.get("scheduling_strategy") == "ANYWHERE", f"{name}: {ast.unparse(node)}"
    assert found
