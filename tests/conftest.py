"""Fixtures shared by all tests."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from gloo_workers import GlooWorkers
from tiny_experiment import TINY

GOLDEN = Path(os.environ.get("RAYREID_GOLDEN", Path(__file__).parent / "golden"))


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
def root(tmp_path_factory):
    """An output root of the module's own; the tests of a module build on one another's artifacts."""
    path = tmp_path_factory.mktemp("outputs")
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
