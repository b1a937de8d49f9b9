"""Training stages without Ray: one worker, in this process, and an MLflow run that only remembers."""

import io

import ray.train.torch
import torch
from rich.console import Console

from rayreid.console import Screen
from rayreid.execution import delivery, trainer
from rayreid.execution.production import StageContext
from rayreid.execution.resources import Share
from rayreid.storage.artifacts import Artifact
from recorded_run import RecordedRun


class InProcess:
    """In place of Ray Train: one worker, in this process."""

    def __init__(self, loop, train_loop_config, **rest):
        self.loop, self.config = loop, train_loop_config

    def fit(self):
        self.loop(self.config)


def train_here(monkeypatch) -> None:
    """Have `fit` train in this process."""
    monkeypatch.setattr(trainer, "awaited_share", lambda resources: Share(1, 1, False))
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(trainer, "Trainer", InProcess)
    monkeypatch.setattr(delivery, "_POLL_SECONDS", 0.05)


def work_on(artifact: Artifact) -> StageContext:
    """What a stage is given to make the artifact with; its screen writes to memory."""
    artifact.path.mkdir(parents=True, exist_ok=True)
    return StageContext(artifact, artifact.path, RecordedRun(), Screen(Console(file=io.StringIO(), width=200)))
