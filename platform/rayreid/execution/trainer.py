"""Connection of the training loop to Ray Train: workers, restarts, and the facts of the result."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayActorError
from ray.train import TrainingFailedError

from rayreid import forms
from rayreid.config import Auto, Resources
from rayreid.data.sampling.batch_plans import BatchPlan
from rayreid.data.store.store import ImageStore
from rayreid.devices import is_out_of_memory
from rayreid.disk_faults import explained
from rayreid.errors import UserError, one_line
from rayreid.evaluation.curves import loss_curves
from rayreid.execution import periodic_metrics, prestart
from rayreid.execution.delivery import METRICS, RESOLVED, Delivery, Watch
from rayreid.execution.failures import note_failure, noted_failures, raise_failure, raise_refusal
from rayreid.execution.gpus import assigned_device, check_alike, out_of_memory
from rayreid.execution.machine import machine_name
from rayreid.execution.production import StageContext
from rayreid.execution.ray_trainer import Trainer
from rayreid.execution.resources import awaited_share
from rayreid.execution.sealed import Sealed
from rayreid.files import check_guards, guard_of, guarded, write_atomically
from rayreid.state_files import read_json
from rayreid.storage.lease import Fence, LeaseLostError
from rayreid.storage.metrics_log import Journal
from rayreid.training import parallel
from rayreid.training.checkpoint import Checkpoints, Milestones
from rayreid.training.compilation import resolve_compile
from rayreid.training.determinism import refusal, require_determinism
from rayreid.training.feed import Prefetcher
from rayreid.training.guard import NonFiniteLossError
from rayreid.training.loop import Batch, LoopSettings, Method, WantedPrecision, resolve_precision, train

_NO_CURVE = ("step", "epoch", "time", "wait", "gpu_hours")
_NO_CURVE_PREFIXES = (*(f"{kind}_" for kind in periodic_metrics.KINDS), "seconds_")

Log = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Training:
    """The training that every worker runs; it is pickled and sent to the workers.

    Attributes:
        folder: The artifact's folder, on storage that all workers see.
        store: The image store's folder.
        plan: The images of each step.
        build: Function (device) → (method on that device, prepare function for the feed).
        save: Function that is called on worker 0 with the trained method.
        epochs: See `LoopSettings`.
        steps_per_epoch: See `LoopSettings`; None: those of `plan`.
        accumulate: See `LoopSettings`.
        precision: See `LoopSettings`; "auto" is resolved on the worker.
        seed: See `LoopSettings`.
        checkpoint_minutes: Minutes between checkpoints; see `LoopSettings`.
        keep_checkpoints: Number of the newest checkpoints that are kept while it runs.
        keep_every_epochs: Interval, in epochs, of the checkpoints that are kept permanently in `epochs/`; None keeps
            none.
        probe: Function (method, device, threads) → the function that `train` calls after each epoch.
        feed: Function (method, prepare, device, threads, log) → the feed from which `train` reads; None reads the
            store's images in the order of the plan.
        compile: See `LoopSettings`; "auto" is resolved on the worker.
        deterministic: See `require_determinism`.
    """

    folder: Path
    store: Path
    plan: BatchPlan
    build: Callable[[torch.device], tuple[Method, Callable[..., Any]]]
    save: Callable[[Any], None]
    epochs: float
    accumulate: int
    precision: WantedPrecision
    seed: int
    checkpoint_minutes: float
    keep_checkpoints: int
    keep_every_epochs: int | None
    probe: Callable[[Any, torch.device, int], Callable[[float], dict[str, float]]] | None = None
    feed: Callable[[Any, Any, torch.device, int, Log], Callable[[int], Iterator[Batch]]] | None = None
    compile: bool | Auto = "auto"
    deterministic: bool = False
    steps_per_epoch: int | None = None

    @property
    def epoch_steps(self) -> int:
        """Return the number of optimizer steps in an epoch, as the loop counts them."""
        return self.plan.steps_per_epoch if self.steps_per_epoch is None else self.steps_per_epoch

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps of the whole training."""
        return round(self.epochs * self.epoch_steps)

    def settings(self, device: torch.device) -> LoopSettings:
        """Return the loop's settings on a worker with the given device."""
        return LoopSettings(
            steps_per_epoch=self.epoch_steps,
            epochs=self.epochs,
            accumulate=self.accumulate,
            precision=resolve_precision(self.precision, device),
            seed=self.seed,
            checkpoint_seconds=60 * self.checkpoint_minutes,
            compile=resolve_compile(self.compile, device),
        )

    def checkpoints(self) -> Checkpoints:
        """Return the checkpoints that hold the training's state."""
        every = self.keep_every_epochs
        milestones = Milestones(self.folder / "epochs", every, self.epoch_steps) if every else None
        return Checkpoints(self.folder / "checkpoints", self.keep_checkpoints, milestones)


def fit(
    context: StageContext, training: Training, resources: Resources, watch: Watch = lambda row: None
) -> dict[str, Any]:
    """Run a training on Ray Train until its result is saved, and return facts for the artifact.

    A lost worker is replaced, and training resumes from the newest checkpoint, up to `resources.max_failures` times. An
    error that the user can fix, or a loss that is not finite, ends the stage, because it would only recur. Warnings of
    `watch` are shown, and set as the run's tag `warning`.

    Args:
        context: The stage's context.
        training: The training to run.
        resources: The workers to use, and the number of failures to tolerate.
        watch: Function that gets every logged row and may return a warning.

    Raises:
        UserError: A worker raised an error that the user can fix, or met a loss that is not finite (the message is
            that worker's), or the training's controller was lost.
        RuntimeError: Workers were lost or failed otherwise, more often than `resources.max_failures`.
    """
    share = awaited_share(resources)
    context.resolved({}, {"workers": share.workers, "cpus_per_worker": share.cpus, "gpu": share.gpu})
    total = training.steps
    check_guards(context.folder)
    for old in noted_failures(context.folder):
        old.unlink()
    (context.folder / RESOLVED).unlink(missing_ok=True)
    trainer = Trainer(
        _worker,
        train_loop_config={
            "training": Sealed(training),
            "cpus": share.cpus,
            "gpu": share.gpu,
            "fence": guard_of(context.folder),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=share.workers,
            use_gpu=share.gpu,
            resources_per_worker={"CPU": share.cpus, **({"GPU": 1} if share.gpu else {})},
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # the checker sees V1's, which V2 replaces on import
            # With a name that was used before, Ray would silently resume its own record; the artifact's id is unique.
            name=context.artifact.id,
            storage_path=str(context.folder / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
            worker_runtime_env={"env_vars": _environment(training, share.cpus)},
        ),
    )
    with context.screen.bar(context.artifact.stage, total) as bar, Delivery(context, bar, watch) as delivery:
        try:
            trainer.fit()
        except TrainingFailedError as error:
            check_guards(context.folder)  # workers that lost the folder to another run have failed for no other reason
            raise_failure(context.folder)
            raise_refusal(context.folder, error)
            raise RuntimeError(f"{context.artifact}: training failed on its workers\n{error}") from error
        except RayActorError as error:
            check_guards(context.folder)
            raise_failure(context.folder)
            raise UserError(
                f"{context.artifact}: Ray lost the process that leads this training ({one_line(error)}); run the same "
                "command again, which goes on from the newest checkpoint"
            ) from error
    check_guards(context.folder)
    raise_failure(context.folder)
    journal = Journal(context.folder / METRICS)
    history, last = journal.history(), journal.newest("loss")
    drawn = [name for name in last if name not in _NO_CURVE and not name.startswith(_NO_CURVE_PREFIXES)]
    context.run.figure(loss_curves(history, drawn), "figures/loss.png")
    return {
        "steps": total,
        "images_seen": total * training.plan.size,
        "final_loss": last["loss"],
        **({"warnings": delivery.warnings} if delivery.warnings else {}),
        **periodic_metrics.outcome(context, history),
        "workers": share.workers,
        "gpu_hours": last["gpu_hours"],
        **read_json(context.folder / RESOLVED, forms.mapping_of(forms.anything)),
    }


def _environment(training: Training, cpus: int) -> dict[str, str]:
    """Return the environment variables of a worker, which may start and import modules before it gets its CPUs."""
    modules = prestart.importing([__name__, type(training.build).__module__])
    # If the user has not set the number of threads, Ray sets it, but too late for libraries that are already imported.
    return {**modules, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(cpus))} if modules else {}


def _worker(config: dict[str, Any]) -> None:
    training: Training = config["training"].open()
    fence: Fence | None = config["fence"]
    # Workers that have lost the folder to another run return like those after an error: see below.
    with contextlib.suppress(LeaseLostError), guarded(training.folder, fence):
        check_guards(training.folder)
        _guarded_worker(training, config["cpus"], config["gpu"], fence.number if fence else 0)


def _guarded_worker(training: Training, cpus: int, gpu: bool, writer: int) -> None:
    if noted_failures(training.folder):
        # After an error on any worker Ray restarts all workers, and no kind of error prevents this. The workers return
        # at once, which ends the training, and the driver reports the reason.
        return
    try:
        with explained(training.folder):  # a full disk is not a lost worker: another one would find it as full
            _train(training, cpus, gpu, writer)
    except LeaseLostError:
        raise
    except (UserError, NonFiniteLossError) as error:
        note_failure(training.folder, error)
        raise
    except RuntimeError as error:
        refused = out_of_memory(error) if is_out_of_memory(error) else refusal(error)
        if refused is None:
            raise
        note_failure(training.folder, refused)
        raise refused from error


def _train(training: Training, cpus: int, gpu: bool, writer: int) -> None:
    torch.set_num_threads(cpus)
    assigned_device(gpu)
    if training.deterministic:
        require_determinism()
    device = ray.train.torch.get_device()
    torch.manual_seed(training.seed)
    method, prepare = training.build(device)
    journal = Journal(training.folder / METRICS, writer)
    feed: Callable[[int], Iterator[Batch]] = (
        training.feed(method, prepare, device, cpus, journal.append)
        if training.feed
        else Prefetcher(ImageStore(training.store), training.plan, prepare, device, training.accumulate, threads=cpus)
    )
    settings = training.settings(device)
    warning = _compared(device, settings.precision) if gpu else None
    if parallel.rank() == 0:
        resolved = {"precision": settings.precision, "compile": settings.compile, "device": device.type}
        resolved["machine"] = machine_name(device)
        if warning:
            resolved["warning"] = warning
        write_atomically(training.folder / RESOLVED, json.dumps(resolved))
    after_epoch = training.probe(method, device, cpus) if training.probe else None
    train(method, feed, settings, device, training.checkpoints(), journal.append, after_epoch)
    if parallel.rank() == 0:
        training.save(method)


def _compared(device: torch.device, precision: str) -> str | None:
    """Return a warning if the workers have different GPUs; see `check_alike`."""
    names = parallel.gather_texts(torch.cuda.get_device_name(device), device)
    return check_alike(names, parallel.gather_texts(precision, device))
