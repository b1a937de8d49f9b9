"""Binding the training loop to Ray Train: workers, restarts, failures, and the delivery of their metrics."""

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import TrainingFailedError
from rich.markup import escape

from rayreid.config import Auto, Resources
from rayreid.console import Bar
from rayreid.data.sampling.batch_plans import BatchPlan
from rayreid.data.store.store import ImageStore
from rayreid.errors import StoppedEarly, UserError
from rayreid.evaluation.figures import loss_curves
from rayreid.execution import periodic_metrics, prestart
from rayreid.execution.production import StageContext
from rayreid.execution.ray_trainer import Trainer
from rayreid.execution.resources import awaited_share
from rayreid.execution.sealed import Sealed
from rayreid.files import write_atomically
from rayreid.storage.metrics_log import Journal, MetricsFeed
from rayreid.training import parallel
from rayreid.training.checkpoint import Checkpoints, Milestones
from rayreid.training.compilation import resolve_compile
from rayreid.training.determinism import refusal, require_determinism
from rayreid.training.feed import Prefetcher
from rayreid.training.guard import NonFiniteLossError
from rayreid.training.loop import Batch, LoopSettings, Method, WantedPrecision, resolve_precision, train

METRICS = "metrics.jsonl"
"""A training's journal, in its artifact's folder."""
_FAILURE = "failure-{}.json"
_RESOLVED = "resolved.json"
_NO_CURVE = ("step", "epoch", "time", "wait", "gpu_hours")
_NO_CURVE_PREFIXES = (*(f"{kind}_" for kind in periodic_metrics.KINDS), "seconds_")
_POLL_SECONDS = 2.0

Watch = Callable[[Mapping[str, float]], str | None]
"""Is shown every logged row in order, and answers with a warning for the user where there is one."""

Log = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Training:
    """What every worker runs; travels to the workers pickled.

    Attributes:
        folder: the artifact's folder, on storage that all workers see.
        store: the images.
        plan: which images each step takes.
        build: (device) → (method on that device, prepare for the feed).
        save: called on worker 0 with the trained method.
        epochs, accumulate, precision, seed, checkpoint_minutes, compile: see `LoopSettings`.
        keep_checkpoints: how many of the newest stay while it runs.
        keep_every_epochs: the checkpoint of every so many epochs stays for good in `epochs/`; None: none does.
        probe: (method, device, threads) → what `train` asks after each epoch.
        feed: (method, prepare, device, threads, log) → what `train` draws from; None: the store's images by the plan.
        deterministic: see `require_determinism`.
    """

    folder: Path
    store: Path
    plan: BatchPlan
    build: Callable[[torch.device], tuple[Method, Callable[..., Any]]]
    save: Callable[[Any], None]
    epochs: int
    accumulate: int
    precision: WantedPrecision
    seed: int
    checkpoint_minutes: float
    keep_checkpoints: int
    keep_every_epochs: int | None
    probe: Callable[[Any, torch.device, int], Callable[[int], dict[str, float]]] | None = None
    feed: Callable[[Any, Any, torch.device, int, Log], Callable[[int], Iterator[Batch]]] | None = None
    compile: bool | Auto = "auto"
    deterministic: bool = False

    def settings(self, device: torch.device) -> LoopSettings:
        """The loop's settings on a worker."""
        return LoopSettings(
            steps_per_epoch=self.plan.steps_per_epoch,
            epochs=self.epochs,
            accumulate=self.accumulate,
            precision=resolve_precision(self.precision, device),
            seed=self.seed,
            checkpoint_seconds=60 * self.checkpoint_minutes,
            compile=resolve_compile(self.compile, device),
        )

    def checkpoints(self) -> Checkpoints:
        """Where its state is kept."""
        every = self.keep_every_epochs
        milestones = Milestones(self.folder / "epochs", every, self.plan.steps_per_epoch) if every else None
        return Checkpoints(self.folder / "checkpoints", self.keep_checkpoints, milestones)


def fit(
    context: StageContext, training: Training, resources: Resources, watch: Watch = lambda row: None
) -> dict[str, Any]:
    """Run a training on Ray Train until its result is saved; returns facts for the artifact.

    A lost worker is replaced and goes on from the newest checkpoint, `resources.max_failures` times. What the user
    can mend, and a loss that is not finite, end the stage: they would only come again. What `watch` warns of is shown,
    and set as the run's tag `warning`.

    Raises:
        UserError: a worker came upon such a fault; the message is that worker's.
        RuntimeError: workers were lost or failed otherwise, more often than `resources.max_failures`.
    """
    share = awaited_share(resources)
    context.resolved({}, {"workers": share.workers, "cpus_per_worker": share.cpus, "gpu": share.gpu})
    total = training.plan.steps_per_epoch * training.epochs
    for old in _failures(context.folder):
        old.unlink()
    (context.folder / _RESOLVED).unlink(missing_ok=True)
    trainer = Trainer(
        _worker,
        train_loop_config={"training": Sealed(training), "cpus": share.cpus},
        scaling_config=ray.train.ScalingConfig(
            num_workers=share.workers,
            use_gpu=share.gpu,
            resources_per_worker={"CPU": share.cpus, **({"GPU": 1} if share.gpu else {})},
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # the checker sees V1's, which V2 replaces on import
            # A name that was used before would silently resume Ray's own record of it: it is this artifact's own.
            name=context.artifact.id,
            storage_path=str(context.folder / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
            worker_runtime_env={"env_vars": _environment(training, share.cpus)},
        ),
    )
    with context.screen.bar(context.artifact.stage, total) as bar, _Delivery(context, bar, watch):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            _raise_failure(context.folder)
            raise RuntimeError(f"{context.artifact}: training failed on its workers\n{error}") from error
    _raise_failure(context.folder)
    history = Journal(context.folder / METRICS).history()
    drawn = [name for name in history[-1] if name not in _NO_CURVE and not name.startswith(_NO_CURVE_PREFIXES)]
    context.run.figure(loss_curves(history, drawn), "figures/loss.png")
    return {
        "steps": total,
        "images_seen": total * training.plan.size,
        "final_loss": history[-1]["loss"],
        **periodic_metrics.outcome(context, history),
        "workers": share.workers,
        "gpu_hours": history[-1]["gpu_hours"],
        **json.loads((context.folder / _RESOLVED).read_text()),
    }


def _environment(training: Training, cpus: int) -> dict[str, str]:
    """Return the environment variables of a worker, which may start, and import, before it is given its CPUs."""
    modules = prestart.importing([__name__, type(training.build).__module__])
    # Where the user has not set the number of threads Ray does; too late for libraries that are imported by then.
    return {**modules, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cpus))} if modules else {}


def _worker(config: dict[str, Any]) -> None:
    training: Training = config["training"].open()
    if _failures(training.folder):
        # Ray starts all workers again after an error on any, and knows no error that is not worth it. That they do
        # nothing ends the training, and the driver says why.
        return
    try:
        _train(training, config["cpus"])
    except (UserError, NonFiniteLossError) as error:
        _note_failure(training.folder, error)
        raise
    except RuntimeError as error:
        refused = refusal(error)
        if refused is None:
            raise
        _note_failure(training.folder, refused)
        raise refused from error


def _note_failure(folder: Path, error: UserError | NonFiniteLossError) -> None:
    """Leave the driver the message.

    The error is often on this worker alone, which has the bad image, while the others wait for its gradients: what is
    raised makes Ray stop them, and the message must be on the disk by then.
    """
    path = folder / _FAILURE.format(parallel.rank())
    where = f"; all {len(error.keys)} keys: {path}" if isinstance(error, NonFiniteLossError) else ""
    content = {"message": f"{error}{where}", "keys": getattr(error, "keys", [])}
    content["hopeless"] = isinstance(error, StoppedEarly)
    write_atomically(path, json.dumps(content))


def _train(training: Training, cpus: int) -> None:
    torch.set_num_threads(cpus)
    if training.deterministic:
        require_determinism()
    device = ray.train.torch.get_device()
    torch.manual_seed(training.seed)
    method, prepare = training.build(device)
    journal = Journal(training.folder / METRICS)
    feed: Callable[[int], Iterator[Batch]] = (
        training.feed(method, prepare, device, cpus, journal.append)
        if training.feed
        else Prefetcher(ImageStore(training.store), training.plan, prepare, device, training.accumulate, threads=cpus)
    )
    settings = training.settings(device)
    if parallel.rank() == 0:
        resolved = {"precision": settings.precision, "compile": settings.compile, "device": device.type}
        write_atomically(training.folder / _RESOLVED, json.dumps(resolved))
    after_epoch = training.probe(method, device, cpus) if training.probe else None
    train(method, feed, settings, device, training.checkpoints(), journal.append, after_epoch)
    if parallel.rank() == 0:
        training.save(method)


def _failures(folder: Path) -> list[Path]:
    """What workers of this training left to say why it cannot go on."""
    return sorted(folder.glob(_FAILURE.format("*")))


def _raise_failure(folder: Path) -> None:
    for path in _failures(folder):
        content = json.loads(path.read_text())
        raise (StoppedEarly if content["hopeless"] else UserError)(content["message"])


class _Delivery:
    """While workers train: their rows go to MLflow, onto the bar and past the watch, from a thread of the driver."""

    def __init__(self, context: StageContext, bar: Bar, watch: Watch):
        self._feed = MetricsFeed(context.folder / METRICS, context.run)
        # Read beside the feed: a tracking server that is away hides nothing from the user.
        self._journal, self._offset = Journal(context.folder / METRICS), 0
        self._work, self._bar, self._watch = context, bar, watch
        self._last: dict[str, float] = {}
        self._warning: str | None = None
        self._read()  # an earlier process's rows: they are for the watch alone, and say nothing of this one's pace
        self._complained = self._announced = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> "_Delivery":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        if not self._try():
            self._work.run.owe(self._work.folder / METRICS)

    def _keep(self) -> None:
        while not self._done.wait(_POLL_SECONDS):
            self._try()

    def _try(self) -> bool:
        """Whether all that was written so far is delivered."""
        try:
            self._announce()
            self._show()
            self._feed.deliver()
            if self._warning is not None:
                self._work.run.tags({"warning": self._warning})
                self._warning = None
        except Exception as error:
            # A tracking server that is away costs no training: what it missed is delivered with the next rows.
            if not self._complained:
                reason = escape(f"{type(error).__name__}: {error}")
                self._work.screen.say(f"  metrics cannot be logged for now ({reason})")
            self._complained = True
            return False
        return True

    def _announce(self) -> None:
        """Say once what the workers' `auto` came to: it depends on their device."""
        path = self._work.folder / _RESOLVED
        if not self._announced and path.exists():
            self._announced = True
            self._work.resolved({}, json.loads(path.read_text()))

    def _show(self) -> None:
        if self._read() and "loss" in self._last:
            self._bar.to(int(self._last["step"]) + 1, _note(self._last))

    def _read(self) -> list[dict[str, float]]:
        """The journal's rows since the last call; the watch has seen them, and the last of each figure is kept."""
        written, self._offset = self._journal.read(self._offset)
        for warning in filter(None, map(self._watch, written)):
            self._warning = warning
            self._work.screen.say(f"  [yellow]warning:[/] {escape(warning)}")
        for row in written:
            self._last.update(row)
        return written


def _note(row: Mapping[str, float]) -> str:
    pace = f"{row['images_per_second']:.0f} images/s, {100 * row['wait']:.0f} % waiting"
    return f"epoch {row['epoch']:.1f}  loss {row['loss']:.3f}  {pace}{periodic_metrics.note(row)}"
