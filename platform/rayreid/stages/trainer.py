"""Binding the training loop to Ray Train: workers, restarts, failures, and the delivery of their metrics."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train.v2.api.exceptions import TrainingFailedError
from rich.markup import escape

from rayreid.artifacts import write_atomically
from rayreid.cluster import training_share
from rayreid.config import Resources
from rayreid.data.sampling import Plan
from rayreid.data.store import ImageStore
from rayreid.errors import UserError
from rayreid.evaluation.figures import loss_curves
from rayreid.journal import Journal
from rayreid.stages.production import Work
from rayreid.stages.progress import Bar
from rayreid.tracking import MetricsFeed
from rayreid.training import parallel
from rayreid.training.checkpoint import Checkpoints
from rayreid.training.feed import Feed
from rayreid.training.loop import LoopSettings, Method, NonFiniteLossError, resolve_precision, train

_METRICS = "metrics.jsonl"
_FAILURE = "failure-{}.json"
_RESOLVED = "resolved.json"
_POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Training:
    """What every worker runs; travels to the workers pickled.

    Attributes:
        folder: the artifact's folder, on storage that all workers see.
        store: the images.
        plan: which images each step takes.
        build: (device) → (method on that device, prepare for the feed).
        save: called on worker 0 with the trained method.
        epochs, accumulate, precision, seed, checkpoint_minutes: see `LoopSettings`.
    """

    folder: Path
    store: Path
    plan: Plan
    build: Callable[[torch.device], tuple[Method, Callable[..., Any]]]
    save: Callable[[Any], None]
    epochs: int
    accumulate: int
    precision: str
    seed: int
    checkpoint_minutes: float

    def settings(self, device: torch.device) -> LoopSettings:
        """The loop's settings on a worker."""
        return LoopSettings(
            steps_per_epoch=self.plan.steps_per_epoch,
            epochs=self.epochs,
            accumulate=self.accumulate,
            precision=resolve_precision(self.precision, device),
            seed=self.seed,
            checkpoint_seconds=60 * self.checkpoint_minutes,
        )


def fit(work: Work, training: Training, resources: Resources) -> dict[str, Any]:
    """Run a training on Ray Train until its result is saved; returns facts for the artifact.

    A lost worker is replaced and goes on from the newest checkpoint, `resources.max_failures` times. What the user
    can mend, and a loss that is not finite, end the stage: they would only come again.

    Raises:
        UserError: a worker came upon such a fault; the message is that worker's.
        RuntimeError: workers were lost or failed otherwise, more often than `resources.max_failures`.
    """
    share = training_share(resources)
    total = training.plan.steps_per_epoch * training.epochs
    for old in _failures(work.folder):
        old.unlink()
    trainer = ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config={"training": training, "cpus": share.cpus},
        scaling_config=ray.train.ScalingConfig(
            num_workers=share.workers,
            use_gpu=share.gpu,
            resources_per_worker={"CPU": share.cpus, **({"GPU": 1} if share.gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            # A name that was used before would silently resume Ray's own record of it: it is this artifact's own.
            name=work.artifact.id,
            storage_path=str(work.folder / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
        ),
    )
    with work.screen.bar(work.artifact.stage, total) as bar, _Delivery(work, bar):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            _raise_failure(work.folder)
            raise RuntimeError(f"{work.artifact}: training failed on its workers\n{error}") from error
    _raise_failure(work.folder)
    history = Journal(work.folder / _METRICS).history()
    drawn = [name for name in history[-1] if name not in ("step", "epoch", "time", "wait")]
    work.run.figure(loss_curves(history, drawn), "figures/loss.png")
    batch = len(training.plan.batch(0, 0))
    return {
        "steps": total,
        "images_seen": total * batch,
        "final_loss": history[-1]["loss"],
        "workers": share.workers,
        "gpu_hours": share.workers * _training_seconds(history, batch) / 3600 if share.gpu else 0.0,
        **json.loads((work.folder / _RESOLVED).read_text()),
    }


def _training_seconds(history: list[dict[str, float]], batch: int) -> float:
    """Time spent in steps, from the throughput of each logged row: what lay between restarts does not count."""
    done = [-1, *(row["step"] for row in history)]
    return sum(
        (row["step"] - before) * batch / row["images_per_second"] for row, before in zip(history, done, strict=False)
    )


def _worker(config: dict[str, Any]) -> None:
    training: Training = config["training"]
    if _failures(training.folder):
        # Ray starts all workers again after an error on any, and knows no error that is not worth it. That they do
        # nothing ends the training, and the driver says why.
        return
    try:
        _train(training, config["cpus"])
    except (UserError, NonFiniteLossError) as error:
        # Often on this worker alone, which has the bad image, while the others wait for its gradients: what is
        # raised makes Ray stop them, and the message must be on the disk by then.
        path = training.folder / _FAILURE.format(parallel.rank())
        write_atomically(path, json.dumps({"message": str(error)}))
        raise


def _train(training: Training, cpus: int) -> None:
    torch.set_num_threads(cpus)
    device = ray.train.torch.get_device()
    torch.manual_seed(training.seed)
    method, prepare = training.build(device)
    feed = Feed(ImageStore(training.store), training.plan, prepare, device, training.accumulate, threads=cpus)
    journal = Journal(training.folder / _METRICS)
    checkpoints = Checkpoints(training.folder / "checkpoints")
    settings = training.settings(device)
    if parallel.rank() == 0:
        resolved = {"precision": settings.precision, "device": device.type}
        write_atomically(training.folder / _RESOLVED, json.dumps(resolved))
    train(method, feed, settings, device, checkpoints, journal.append)
    if parallel.rank() == 0:
        training.save(method)


def _failures(folder: Path) -> list[Path]:
    """What workers of this training left to say why it cannot go on."""
    return sorted(folder.glob(_FAILURE.format("*")))


def _raise_failure(folder: Path) -> None:
    for path in _failures(folder):
        raise UserError(json.loads(path.read_text())["message"])


class _Delivery:
    """While workers train: their rows go to MLflow and onto the bar, from a thread of the driver."""

    def __init__(self, work: Work, bar: Bar):
        self._feed = MetricsFeed(work.folder / _METRICS, work.run)
        self._bar = bar
        self._screen = work.screen
        self._complained = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> "_Delivery":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self._try()

    def _keep(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            self._try()

    def _try(self) -> None:
        try:
            self._show()
        except Exception as error:
            # A tracking server that is away costs no training: what it missed is delivered with the next rows.
            if not self._complained:
                reason = escape(f"{type(error).__name__}: {error}")
                self._screen.say(f"  metrics cannot be logged for now ({reason})")
            self._complained = True

    def _show(self) -> None:
        rows = [row for row in self._feed.deliver() if "loss" in row]
        if rows:
            last = rows[-1]
            note = f"epoch {last['epoch']:.1f}  loss {last['loss']:.3f}  {last['images_per_second']:.0f} images/s"
            self._bar.to(int(last["step"]) + 1, note)
