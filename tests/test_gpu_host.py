"""The tests for a GPU and `benchmarks/gpu.py` need no more than a GPU host has: torch, but neither Ray nor pydantic."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
MISSING = ("ray", "mlflow", "pydantic", "faiss", "lmdb", "optuna", "typer", "moto", "jsonschema", "nbclient", "umap")
WITHOUT = f"""
import runpy
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {MISSING!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
sys.argv.pop(0)
"""
PYTEST = "sys.argv.insert(0, 'pytest'); runpy.run_module('pytest', run_name='__main__')"
SCRIPT = "sys.path[:0] = ['benchmarks', 'platform']; runpy.run_path(sys.argv[0], run_name='__main__')"


def on_a_bare_host(how: str, *arguments: str) -> tuple[int, list[str]]:
    """The exit status and the output of a process in which those modules are missing."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    command = [sys.executable, "-c", WITHOUT + how, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout.splitlines()


def test_the_tests_for_a_gpu_need_no_ray_mlflow_or_pydantic():
    status, lines = on_a_bare_host(PYTEST, "-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider")
    assert status == 0, lines
    found = {line.partition("::")[0] for line in lines if "::" in line}
    marked = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "tests").rglob("test_*.py")
        if f"@pytest.{'mark'}.gpu" in file.read_text(encoding="utf-8")
    }
    assert found == marked and len(found) > 10
    assert sum("::" in line for line in lines) > 35


def test_other_tests_cannot_be_read_there():
    status, lines = on_a_bare_host(
        PYTEST, "--collect-only", "-q", "-p", "no:cacheprovider", "tests/config/test_schema.py"
    )
    assert status == 2 and any("ModuleNotFoundError: No module named" in line for line in lines), lines


def test_the_benchmark_of_a_gpu_runs_there(tmp_path):
    out = tmp_path / "gpu.jsonl"
    status, lines = on_a_bare_host(
        SCRIPT, "benchmarks/gpu.py", "--device", "cpu", "--rows", "evaluate", "--out", str(out)
    )
    assert status == 0 and '"same": "yes"' in out.read_text(), lines
