"""Fixtures shared by all tests."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

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
