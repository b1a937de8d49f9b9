"""Fixtures for several modules: an output root of its own."""

import pytest


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """The output root of the commands; it does not exist yet."""
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path / "outputs"))
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "outputs"
