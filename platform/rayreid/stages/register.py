"""Putting the best model of a sweep into MLflow's registry, from MLflow alone."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from rayreid.artifacts import output_root
from rayreid.errors import UserError
from rayreid.models.extractor import load_extractor
from rayreid.registry import fetch_weights, register
from rayreid.stages.experiment import COLUMNS
from rayreid.stages.outcomes import Trial, trials_of
from rayreid.stages.progress import Screen
from rayreid.stages.report import find
from rayreid.tracking import Run, Tracker

_MODELS = ("run.adapted", "run.model", "run.weights")
"""Tags of a trial that name the run of what was evaluated, the last in the graph first."""


def register_best(sweep: str, overrides: Sequence[str] = (), name: str | None = None) -> str:
    """Register the model of the trial with the highest mAP, with a signature.

    Args:
        sweep, overrides: see `rayreid.stages.report.report`.
        name: of the registered model; the experiment's unless given.

    Returns:
        Its URI, for `mlflow.pytorch.load_model`.

    Raises:
        UserError: no such sweep, or its weights cannot be fetched.
    """
    history, experiment, _, members = find(sweep, overrides)
    best = best_of(trials_of(members))
    made_by = next((best.record.tags[tag] for tag in _MODELS if tag in best.record.tags), None)
    if made_by is None:
        raise UserError(f"{best.record.name}: its run does not tell which stage made its model; run it again")
    run = Run(Tracker(output_root(), experiment), best.record.id)
    with tempfile.TemporaryDirectory() as folder:
        model, size = load_extractor(fetch_weights(history.client, made_by, Path(folder)))
    example = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    tags = {name: best.record.tags[name] for name in (*COLUMNS, "target")}
    tags |= {score: round(best.record.metrics[score], 4) for score in ("mAP", "rank1")}
    version, uri = register(run, name or experiment, model, example, tags)
    run.tags({"registered": uri})
    Screen().say(f"{uri}: {best.record.name}, mAP {100 * best.record.metrics['mAP']:.1f}, version {version}")
    return uri


def best_of(trials: Sequence[Trial]) -> Trial:
    """The trial of the highest mAP; of equal ones the first."""
    return max((one for one in trials if one.outcome), key=lambda one: one.record.metrics["mAP"])
