"""A tiny experiment on drawn pedestrians, and a Ray cluster of one's own."""

import os

import pytest
import yaml
from tiny_experiment import TINY


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
