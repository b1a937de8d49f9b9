"""Outcomes, failures and costs of a sweep or of an experiment's rows, read from MLflow alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rayreid.errors import UserError
from rayreid.evaluation.metrics import METRICS
from rayreid.evaluation.outcomes import Outcome
from rayreid.pipeline.graph import ROLES
from rayreid.pipeline.summary import TEST_IMAGES
from rayreid.pipeline.tags import COLUMNS
from rayreid.storage.roles import Role
from rayreid.tracking.history import History, Record

_TOLD_BY_COLUMNS = (
    "name",
    "seed",
    "backbone.name",
    "backbone.stem",
    "pretrain.method",
    "adapt.method",
    "select.strategy",
    "select.fraction",
    "select.count",
    "resources.",
)
"""Parameters (or their prefixes) that the columns already show, or that do not change a result."""
_OF_SELECTION = ROLES[ROLES.index("source_proxy") : ROLES.index("subset") + 1]
"""Kinds of the artifacts that count as the cost of a selection."""


@dataclass(frozen=True)
class Trial:
    """A trial or row, with or without a result.

    Attributes:
        record: The MLflow run.
        outcome: The result; None if the run has no metrics.
        error: Why there is no result, as far as the run records it.
        stopped: Whether a rule of the sweep stopped it early.
    """

    record: Record
    outcome: Outcome | None
    error: str
    stopped: bool = False


def latest(history: History, name: str, digest: str | None) -> tuple[Record, list[Record]]:
    """Return the newest run with results, and its trials or rows.

    Args:
        history: The runs in MLflow.
        name: Name of the experiment.
        digest: Hash of the configuration that the run must have; None: any.

    Raises:
        UserError: There is no such run.
    """
    runs = history.tops(name)
    exact = [run for run in runs if digest is None or run.tags.get("config") == digest]
    if runs and not exact:
        raise UserError(
            f"experiment {name!r} was not run as the file stands now; to report on the newest run of that name, give "
            "the name instead of the file"
        )
    for run in exact:
        members = [child for child in history.children(run) if not child.is_stage] or [run]
        if any("mAP" in member.metrics for member in members):
            return run, members
    raise UserError(f"experiment {name!r} has no run with results yet in MLflow at {history.uri}")


def trials_of(members: Sequence[Record]) -> list[Trial]:
    """Return trials or rows with their outcomes."""
    extras = _extras([member for member in members if "mAP" in member.metrics])
    made = []
    for member in members:
        if "mAP" in member.metrics:
            made.append(Trial(member, _outcome(member, extras[member.id]), ""))
        elif "stopped" in member.tags:
            made.append(Trial(member, None, member.tags["stopped"], stopped=True))
        else:
            error = member.tags.get("error", "no error was recorded")
            state = "" if member.status == "FAILED" else f"{member.status.lower()}: "
            made.append(Trial(member, None, f"{state}{error}"))
    return made


def selection_costs(history: History, members: Iterable[Record]) -> dict[str, tuple[int, float, float]]:
    """Return the cost of selection, without the trials: stage → (runs, GPU-hours, hours), each distinct run once."""
    runs: dict[str, Record] = {}
    for member in members:
        for tag, run_id in member.tags.items():
            role = Role(tag.removeprefix("run."))
            if tag.startswith("run.") and role.kind in _OF_SELECTION and run_id not in runs:
                found = history.get(run_id)
                if found is not None:
                    runs[run_id] = found
    spent: dict[str, tuple[int, float, float]] = {}
    for run in runs.values():
        count, gpu_hours, hours = spent.get(run.tags["stage"], (0, 0.0, 0.0))
        gpu_hours += run.metrics.get("gpu_hours", 0.0)
        spent[run.tags["stage"]] = (count + 1, gpu_hours, hours + run.metrics.get("seconds", 0.0) / 3600)
    return spent


def _outcome(run: Record, extras: Mapping[str, str]) -> Outcome:
    tags, metrics = run.tags, run.metrics
    fraction = tags.get("fraction", "count")
    if TEST_IMAGES in metrics:
        extras = {**extras, TEST_IMAGES: f"{metrics[TEST_IMAGES]:.0f}"}
    return Outcome(
        label=tags.get("row", run.name),
        backbone=tags["backbone"],
        stem=tags["stem"],
        method=tags["method"],
        adapt=tags["adapt"],
        strategy=tags["strategy"],
        fraction=None if fraction == "count" else float(fraction),
        images=int(metrics["images"]),
        seed=tags["seed"],
        scores={name: metrics[name] for name in METRICS},
        gpu_hours=metrics["gpu_hours"],
        hours=metrics["total_seconds"] / 3600,
        extras=extras,
        result=tags.get("artifact.metrics", ""),
    )


def _extras(runs: Sequence[Record]) -> dict[str, dict[str, str]]:
    """Return the parameters, by run, in which the runs differ beyond the columns."""
    keys = {key for run in runs for key in run.params} - set(COLUMNS)
    keys = {key for key in keys if not key.startswith(_TOLD_BY_COLUMNS)}
    differing = [key for key in sorted(keys) if len({run.params[key] for run in runs if key in run.params}) > 1]
    return {run.id: {key: run.params[key] for key in differing if key in run.params} for run in runs}
