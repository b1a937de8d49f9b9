"""Duration, GPU-hours and disk space of one artifact: from earlier runs on this root, else from measured figures."""

from dataclasses import dataclass, replace
from typing import Literal

from rayreid.config import Experiment, Pretrain, Resources
from rayreid.pipeline.forecast import figures
from rayreid.pipeline.forecast.earlier_runs import EarlierRuns
from rayreid.pipeline.forecast.planned_machine import PlannedMachine
from rayreid.pipeline.forecast.spans import NOTHING, Span
from rayreid.pipeline.forecast.workloads import (
    INFERENCES,
    TRAININGS,
    Workload,
    cost_of,
    head_parameters,
)
from rayreid.storage.artifacts import Artifact
from rayreid.storage.roles import Role

Basis = Literal["earlier runs", "table"]
"""What an estimate was made from: earlier runs on this root, or the figures of docs/performance.md."""

_FLOAT = 4
_STATES = 4
"""Copies of the parameters in a checkpoint of a pre-training: two networks and the optimizer's two moments."""


@dataclass(frozen=True)
class Estimate:
    """What making an artifact costs.

    Attributes:
        seconds: Duration of the stage.
        gpu_hours: GPU-hours, for as long as the stage holds its GPUs.
        disk: Bytes that stay, with the copies that MLflow keeps.
        basis: What the duration was estimated from.
        runs: Number of earlier runs behind it.
    """

    seconds: Span
    gpu_hours: Span
    disk: Span
    basis: Basis
    runs: int = 0

    def of_the_rest(self, left: float, stage: str) -> "Estimate":
        """Return the estimate for what is left of a half-made artifact, a share in [0, 1]; it has to start up again."""
        start = figures.STAGE_SECONDS.get(stage, figures.OTHER_STAGE_SECONDS) * (1 - left)
        seconds = self.seconds * left + start
        rest = seconds.likely / self.seconds.likely if self.seconds.likely else 1.0
        return replace(self, seconds=seconds, gpu_hours=self.gpu_hours * rest)


class Estimator:
    """Estimates for one machine.

    Args:
        machine: The machine.
        earlier: The paces of earlier runs.
    """

    def __init__(self, machine: PlannedMachine, earlier: EarlierRuns):
        self.machine, self._earlier = machine, earlier

    def of(self, role: str, artifact: Artifact, work: Workload, experiment: Experiment) -> Estimate:
        """Return what making an artifact costs.

        Args:
            role: The artifact's role in the experiment.
            artifact: The artifact.
            work: Its work.
            experiment: The experiment, for settings that enter no identity.

        Raises:
            UserError: The machine cannot hold the workers that the configuration asks for.
        """
        workers, cpus, gpu = self._share(artifact.stage, experiment.resources)
        told = self._earlier.seconds(artifact, work, workers)
        seconds = told[0] if told else self._from_table(artifact, work, workers, cpus, gpu)
        size = self._earlier.size(artifact, work) or _size(role, artifact, work, experiment)
        hours = seconds * (workers / 3600) if gpu else NOTHING
        return Estimate(seconds, hours, size, "earlier runs" if told else "table", told[1] if told else 0)

    def _share(self, stage: str, resources: Resources) -> tuple[int, int, bool]:
        """Return the processes of a stage, the CPU cores of each, and whether each has a GPU."""
        if stage in TRAININGS:
            share = self.machine.training(resources)
            return share.workers, share.cpus, share.gpu
        if stage in INFERENCES:
            share = self.machine.inference()
            return share.workers, share.cpus, share.gpu
        return 1, self.machine.cpus, False

    def _from_table(self, artifact: Artifact, work: Workload, workers: int, cpus: int, gpu: bool) -> Span:
        stage = artifact.stage
        start = figures.STAGE_SECONDS.get(stage, figures.OTHER_STAGE_SECONDS)
        if stage == "ingest":
            drawn = artifact.fields["source"]["dataset"] == "synthetic"
            pace = figures.DRAWN_PER_CORE if drawn else figures.INGESTED_PER_CORE
            return start + pace.over(work.images) * (1 / self.machine.cpus)
        if stage == "quality":
            return start + figures.MEASURED_PER_CORE.over(work.images) * (1 / self.machine.cpus)
        if stage == "priority":
            start += _grouping(artifact.fields["strategy"], work.images)
        if not work.gflop:
            return start
        if not gpu:
            return start + figures.CPU_GFLOPS_PER_CORE.over(work.gflop) * (1 / (workers * cpus))
        training = stage in TRAININGS
        speed = figures.GPU_TRAINING_GFLOPS if training else figures.GPU_INFERENCE_GFLOPS
        compute = speed.over(work.gflop).at_least(figures.GPU_IMAGES_FROM_JPEG.over(work.seen)) * (1 / workers)
        if training:
            return start + figures.GPU_COMPILE_SECONDS + compute.at_least(figures.GPU_STEP_SECONDS * work.steps)
        return start + compute


def _grouping(strategy: str, images: int) -> Span:
    """Return how long it takes to group images by their features, if the strategy does so."""
    if strategy not in figures.RANKING_CORE_SECONDS:
        return NOTHING
    seconds, power = figures.RANKING_CORE_SECONDS[strategy]
    return figures.RANKING_THREADS * (seconds * (images / 1e6) ** power)


def _size(role: str, artifact: Artifact, work: Workload, experiment: Experiment) -> Span:
    """Return the bytes that stay of an artifact, from its form alone."""
    if artifact.stage == "ingest":
        height, width = artifact.fields["source"]["options"].get("size") or (figures.IMAGE_PIXELS, 1)
        return figures.JPEG_BYTES_PER_PIXEL * (height * width * work.images)
    if artifact.stage in TRAININGS and work.network is not None:
        weights = _FLOAT * cost_of(work.network).parameters
        kept = 2.0 * weights + _milestones(role, artifact, work, experiment)  # one copy is MLflow's
        return Span(kept, 1.02 * kept, 1.1 * kept)
    if artifact.stage == "evaluate":
        return figures.EVALUATION_BYTES
    per_image = {"score": 160.0, "priority": 80.0, "select": 80.0, "features": 800.0, "quality": 50.0}
    return Span(0.5, 1.0, 2.0) * (per_image.get(artifact.stage, 0.0) * work.images)


def _milestones(role: str, artifact: Artifact, work: Workload, experiment: Experiment) -> float:
    """Return the bytes of the checkpoints that a training keeps for good."""
    config = {"weights": experiment.pretrain, "source_proxy": experiment.proxy.pretrain}.get(Role(role).kind)
    if not isinstance(config, Pretrain) or config.keep_every_epochs is None or work.network is None:
        return 0.0
    epochs = config.epochs if config.steps is None else work.seen // max(work.images, 1)
    parameters = cost_of(work.network).parameters + head_parameters(config, work.network)
    return float(epochs // config.keep_every_epochs * _STATES * _FLOAT * parameters)
