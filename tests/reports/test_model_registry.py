"""A model goes into MLflow's registry and comes back without this project's code."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.models import Model

from rayreid.errors import UserError
from rayreid.models.backbones import build_backbone
from rayreid.models.extractor import load_extractor
from rayreid.models.weights import save_backbone
from rayreid.reports.model_registry import best_of, fetch_weights, register
from rayreid.reports.trial_results import Trial
from rayreid.tracking.history import Record
from rayreid.tracking.tracker import Tracker

ELSEWHERE = """
import sys, mlflow, numpy, torch
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pytorch.load_model("models:/best/1")
images = torch.from_numpy(numpy.load(sys.argv[2]))
with torch.no_grad():
    numpy.save(sys.argv[3], model(images).numpy())
assert "rayreid" not in sys.modules
"""


@pytest.fixture
def tracker(tmp_path, new_database, monkeypatch) -> Tracker:
    new_database(tmp_path / "root")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Tracker(tmp_path / "root", "registered")


def test_a_model_comes_back_from_the_registry(tracker, tmp_path):
    torch.manual_seed(0)
    stage, trial = tracker.run("finetune"), tracker.run("trial")
    backbone = build_backbone("vit_tiny", "ics", (64, 32), depth=1).eval()
    save_backbone(tmp_path / "model.safetensors", backbone, (0.5,) * 3, (0.5,) * 3)
    stage.file(tmp_path / "model.safetensors", "weights")

    fetched = tmp_path / "fetched"
    fetched.mkdir()
    model, size = load_extractor(fetch_weights(tracker.client, stage.id, fetched))
    images = torch.rand(5, 3, *size)
    tracker.client.create_registered_model("best")  # by an earlier sweep
    assert register(trial, "best", model, images[:2], {"mAP": 0.5}) == ("1", "models:/best/1")

    held = tracker.client.get_model_version("best", "1")
    assert (held.run_id, held.tags["mAP"]) == (trial.id, "0.5")
    signature = Model.load(tracker.client.download_artifacts(trial.id, "model", str(fetched))).signature
    assert signature.inputs.inputs[0].shape == (-1, 3, 64, 32) and signature.outputs.inputs[0].shape == (-1, 192)

    np.save(tmp_path / "images.npy", images.numpy())
    command = [sys.executable, "-c", ELSEWHERE, tracker.uri, tmp_path / "images.npy", tmp_path / "features.npy"]
    subprocess.run([str(part) for part in command], check=True, cwd=tmp_path, timeout=180)
    with torch.no_grad():
        expected = model(images).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), expected, atol=1e-5)
    assert np.allclose(np.linalg.norm(expected, axis=1), 1)


def test_a_run_without_weights_is_one_line(tracker, tmp_path):
    with pytest.raises(UserError, match="no weights"):
        fetch_weights(tracker.client, tracker.run("evaluate").id, Path(tmp_path))


def test_the_best_trial_has_the_highest_map_and_is_the_first_of_equals():
    def trial(name, outcome, **metrics):
        return Trial(Record(name, name, "FINISHED", {}, {}, metrics), outcome, "")

    trials = [trial("failed", None), trial("low", "reached", mAP=0.2)]
    trials += [trial(name, "reached", mAP=0.6) for name in ("first", "second")]
    assert best_of(trials).record.name == "first"
    assert best_of(trials[:2]).record.name == "low"
