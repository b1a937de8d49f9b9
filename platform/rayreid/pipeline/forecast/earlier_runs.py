"""Paces of earlier runs on this output root: images per second by stage, network and device, and start-up times."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rayreid.config import Adapt, Backbone, Finetune, Pretrain
from rayreid.errors import UserError
from rayreid.execution.trainer import METRICS
from rayreid.pipeline.forecast.figures import OTHER_STAGE_SECONDS, STAGE_SECONDS
from rayreid.pipeline.forecast.planned_machine import PlannedMachine
from rayreid.pipeline.forecast.spans import Span
from rayreid.pipeline.forecast.workloads import TRAININGS, Workload, cost_of
from rayreid.storage.artifacts import Artifact
from rayreid.storage.inventory import Inventory, Stored
from rayreid.storage.metrics_log import Journal

_SAME, _SCALED = 1.15, 1.6
"""Factors by which a duration may be off: of the same network and device; of a stage that any network may have run."""

_AS_LARGE = 2
"""Factor by which a pool may be larger than that of an earlier ranking which tells the duration of another one."""

_NOT_COPIED = ("ingest", "features", "quality")
"""Stages whose files are not logged to MLflow."""


@dataclass(frozen=True)
class Pace:
    """What one finished artifact tells.

    Attributes:
        kind: What must agree for its pace to hold: stage, method, network.
        device, machine: Where it was made, as it records it; "" if it does not.
        workers: Number of training workers.
        seen: Number of images that passed through the network, each as often as it did.
        rate: Images per second of its training, all workers together; 0 for other stages.
        seconds: Duration of the whole stage.
        size: Bytes of its files.
        images: Number of images that it was made of.
    """

    kind: tuple[Any, ...]
    device: str
    machine: str
    workers: int
    seen: int
    rate: float
    seconds: float
    size: int
    images: int

    @property
    def beside(self) -> float:
        """Return the seconds of a training before its first step and after its last one, its probes included."""
        return max(0.0, self.seconds - self.seen / self.rate) if self.rate else 0.0


class EarlierRuns:
    """The paces of an output root's complete artifacts.

    Args:
        inventory: The artifacts.
        machine: The machine to estimate for.
    """

    def __init__(self, inventory: Inventory, machine: PlannedMachine):
        self._inventory, self._machine = inventory, machine
        self._known: dict[str, list[Pace]] = {}

    def seconds(self, artifact: Artifact, work: Workload, workers: int) -> tuple[Span, int] | None:
        """Return the duration of a stage, and how many earlier runs tell it; None if none does.

        Args:
            artifact: The artifact to be made.
            work: Its work.
            workers: The number of training workers.
        """
        kind = _kind(artifact.stage, artifact.fields)
        paces = [one for one in self._paces(artifact.stage) if self._here(one)]
        same = [one for one in paces if one.kind == kind]
        if artifact.stage in TRAININGS:
            return _training(same, work, workers)
        if artifact.stage == "priority":  # its time does not grow in proportion to the pool
            return _other(artifact.stage, [one for one in same if one.images >= work.images / _AS_LARGE], work)
        return _other(artifact.stage, same or paces, work)

    def size(self, artifact: Artifact, work: Workload) -> Span | None:
        """Return the bytes of an artifact and of MLflow's copy, from earlier ones like it; None if there is none."""
        kind = _kind(artifact.stage, artifact.fields)
        same = [one for one in self._paces(artifact.stage) if one.kind == kind and one.size]
        if not same:
            return None
        grows = artifact.stage in ("ingest", "score", "features", "quality", "priority", "select")
        sizes = [one.size * (work.images / one.images if grows and one.images and work.images else 1) for one in same]
        return Span.around(sizes, 1.2) * (1 if artifact.stage in _NOT_COPIED else 2)

    def _here(self, pace: Pace) -> bool:
        """Return whether a pace is one of the machine to estimate for; without a name, of any with such a device."""
        if pace.device and pace.device != self._machine.device:
            return False
        return not (pace.machine and self._machine.name) or pace.machine == self._machine.name

    def _paces(self, stage: str) -> list[Pace]:
        if stage not in self._known:
            self._known[stage] = list(self._read(stage))
        return self._known[stage]

    def _read(self, stage: str) -> Iterator[Pace]:
        for stored in self._inventory.complete(stage):
            assert stored.record is not None
            facts = stored.record.facts
            seconds = facts.get("seconds")
            if facts.get("resumed") or not isinstance(seconds, int | float):
                continue  # what an interrupted process spent is not known
            yield Pace(
                kind=_kind(stage, stored.record.recipe["fields"]),
                device=str(facts.get("device", "")),
                machine=str(facts.get("machine", "")),
                workers=_whole(facts.get("workers")) or 1,
                seen=_whole(facts.get("images_seen")),
                rate=_rate(stored) if stage in TRAININGS else 0.0,
                seconds=float(seconds),
                size=stored.size,
                images=_whole(facts.get("images")) or _whole(facts.get("queries")) + _whole(facts.get("gallery")),
            )


def _training(same: list[Pace], work: Workload, workers: int) -> tuple[Span, int] | None:
    usable = [one for one in same if one.rate > 0]
    if not usable:
        return None
    rates = Span.around([one.rate / one.workers * workers for one in usable], _SAME)
    beside = Span.around([one.beside for one in usable], _SAME)
    return rates.over(work.seen) + beside, len(usable)


def _other(stage: str, paces: list[Pace], work: Workload) -> tuple[Span, int] | None:
    """Return the duration of a stage whose start-up takes a part that does not grow with the images."""
    if not paces:
        return None
    fixed = STAGE_SECONDS.get(stage, OTHER_STAGE_SECONDS)
    found = []
    for one in paces:
        begun = min(one.seconds, fixed.likely)
        ratio = work.images / one.images if one.images and work.images else 1.0
        found.append(begun + (one.seconds - begun) * ratio)
    return Span.around(found, _SCALED if work.gflop else _SAME), len(paces)


def _kind(stage: str, fields: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what decides the pace of a stage, beside the machine."""
    if stage == "ingest":
        source = fields.get("source", {})
        return stage, source.get("dataset"), str(source.get("options", {}).get("size")), source.get("verify")
    if stage == "priority":
        return stage, fields.get("strategy")
    if stage not in TRAININGS:
        return (stage,)
    try:
        network = Backbone(**fields["backbone"])
        work = cost_of(network)
    except (UserError, ValueError, KeyError, TypeError):  # of a version that had other networks or fields
        return stage, str(fields)
    return stage, work.gflop, network.stem, *_step(stage, fields)


def _step(stage: str, fields: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what decides the work of an optimizer step beside the network."""
    section = fields.get(stage, {})
    try:
        if stage == "pretrain":
            config = Pretrain(**section)
            local = config.recipe(Backbone(**fields["backbone"])).local_crops
            return config.method, config.batch_size, config.accumulate, config.precision, local, str(config.local_size)
        if stage == "finetune":
            tuned = Finetune(**section)
            return tuned.batch_size, tuned.precision
        adapted = Adapt(**section)
    except (UserError, ValueError, TypeError):
        return (str(section),)
    return adapted.clusters * adapted.instances, adapted.precision, adapted.search


def _rate(stored: Stored) -> float:
    """Return the median images per second of a training's journal; 0 if it has none."""
    rows = Journal(stored.folder / METRICS).history()
    rates = [row["images_per_second"] for row in rows if row.get("images_per_second", 0) > 0]
    return statistics.median(rates) if rates else 0.0


def _whole(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else 0
