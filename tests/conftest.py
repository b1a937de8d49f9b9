"""Fixtures shared by all tests."""

import fcntl
import gc
import json
import os
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import torch

from gloo_workers import GlooWorkers
from shared_ray import SharedRay
from tiny_experiment import TINY

GOLDEN = Path(os.environ.get("RAYREID_GOLDEN", Path(__file__).parent / "golden"))


def pytest_configure(config):
    """Let the processes that tests start find the package where it is not installed, as on a GPU host."""
    try:
        distribution("rayreid")
    except PackageNotFoundError:
        paths = [str(config.rootpath / "platform"), os.environ.get("PYTHONPATH")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def pytest_ignore_collect(collection_path, config):
    """Under `-m gpu`, read only the files that have such tests: a GPU host may lack Ray and what else others import."""
    if config.option.markexpr != "gpu":
        return None
    files = collection_path.rglob("test_*.py") if collection_path.is_dir() else [collection_path]
    return None if any(file.suffix == ".py" and names(file, "gpu") for file in files) else True


def names(file: Path, marker: str) -> bool:
    return f"mark.{marker}" in file.read_text(encoding="utf-8")


def pytest_collection_modifyitems(items):
    """Run tests that need Ray last, and skip those that need a GPU where there is none.

    The Ray that tests share must not run beside tests that expect none.

    Raises:
        UsageError: `make test-ray` or `make test-gpu` would not read the file of a test that it is to run.
    """
    items.sort(key=lambda item: item.get_closest_marker("ray") is not None)
    for marker in ("ray", "gpu"):
        for file in {item.path for item in items if item.get_closest_marker(marker)}:
            if not names(file, marker):
                raise pytest.UsageError(f"{file}: `make test-{marker}` misses its tests, since it has no mark.{marker}")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_collection_finish():
    """Leave what was imported out of the searches for unreachable cycles: they took a tenth of the tests' time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """Let Python end without such a search."""
    gc.freeze()


@pytest.fixture(autouse=True)
def own_threads():
    """Restore torch's number of threads. A forked child would wait for ever for the threads of its parent's pool."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Golden(dict):
    """One parity file: its arrays by name, its `meta` parsed, its weights under `state`."""

    def __init__(self, path: Path):
        with np.load(path) as arrays:
            super().__init__({name: arrays[name] for name in arrays.files if name != "meta"})
            self.meta = json.loads(str(arrays["meta"])) if "meta" in arrays.files else {}

    @property
    def state(self) -> dict[str, np.ndarray]:
        return {name.removeprefix("state/"): value for name, value in self.items() if name.startswith("state/")}


@pytest.fixture(scope="session")
def golden():
    """`golden("dino_loss.npz")` reads a parity file from RAYREID_GOLDEN (default: tests/golden)."""
    return lambda name: Golden(GOLDEN / name)


@pytest.fixture
def golden_dir() -> Path:
    return GOLDEN


@pytest.fixture(scope="module")
def root(tmp_path_factory, new_database):
    """An output root of the module's own; the tests of a module build on one another's artifacts."""
    path = tmp_path_factory.mktemp("outputs")
    new_database(path)
    before = {name: os.environ.get(name) for name in ("RAYREID_ROOT", "MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    os.environ["RAYREID_ROOT"] = str(path)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ.pop("RAY_ADDRESS", None)
    yield path
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture
def tiny(tmp_path):
    """Writes the tiny experiment with changes to a file; returns its path."""
    import yaml  # the domain is also tested where only its own dependencies are installed

    def write(**changes):
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({**TINY, **changes}))
        return path

    return write


@pytest.fixture(scope="session")
def gloo():
    """`gloo(function, *arguments)` returns what `function(rank, *arguments)` returns on each of two workers."""
    workers = GlooWorkers()
    yield workers
    workers.close()


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`once(name, make)` returns a path that `make(path)` has made; all pytest-xdist workers get the same one."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def once(name: str, make: Callable[[Path], None]) -> Path:
        path, unfinished = folder / name, folder / f"{name}.tmp"
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                make(unfinished)
                unfinished.rename(path)
        return path

    return once


@pytest.fixture(scope="session")
def new_database(once):
    """`new_database(folder)` puts an empty MLflow database into an output root.

    It is a copy. MLflow takes seconds to create the tables of a new one.
    """

    def create(path: Path) -> None:
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{path}").search_experiments()

    def copy(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        shutil.copy(once("mlflow.db", create), folder / "mlflow.db")

    return copy


@pytest.fixture(scope="session")
def _session_ray(tmp_path_factory):
    made = SharedRay(tmp_path_factory.mktemp("ray"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def shared_ray(_session_ray):
    """One Ray for all modules that ask for it; `connect()` uses it where it runs, and starts none."""
    _session_ray.start()


@pytest.fixture(scope="module")
def no_shared_ray(_session_ray):
    """For a module whose tests start a Ray themselves."""
    _session_ray.stop()
