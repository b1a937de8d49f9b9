"""Registration of the best model of a sweep in MLflow, with a signature, loadable without this project."""

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.markup import escape

from rayreid.console import Screen
from rayreid.errors import UserError, one_line
from rayreid.models.extractor import load_extractor
from rayreid.paths import output_root
from rayreid.pipeline.tags import COLUMNS
from rayreid.reports.sweep_report import find
from rayreid.reports.trial_results import Trial, trials_of
from rayreid.tracking.run import Run
from rayreid.tracking.tracker import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient

_FOLDER = "model"
_MODELS = ("run.adapted", "run.model", "run.weights")
"""Tags of a trial that name the run of the evaluated model, from the last stage of the graph to the first."""


def register_best(sweep: str, overrides: Sequence[str] = (), name: str | None = None) -> str:
    """Register the model of the trial with the highest mAP, with a signature.

    Args:
        sweep, overrides: See `rayreid.reports.sweep_report.report`.
        name: Name of the registered model (default: the experiment's name).

    Returns:
        The URI of the model version, for `mlflow.pytorch.load_model`.

    Raises:
        UserError: The sweep does not exist, or the weights cannot be fetched.
    """
    history, experiment, _, members = find(sweep, overrides)
    best = best_of(trials_of(members))
    made_by = next((best.record.tags[tag] for tag in _MODELS if tag in best.record.tags), None)
    if made_by is None:
        raise UserError(f"{best.record.name}: its run does not record which stage made its model; run it again")
    run = Run(Tracker(output_root(), experiment), best.record.id)
    with tempfile.TemporaryDirectory() as folder:
        model, size = load_extractor(fetch_weights(history.client, made_by, Path(folder)))
    example = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    tags: dict[str, str | float] = {name: best.record.tags[name] for name in (*COLUMNS, "target")}
    tags |= {score: round(best.record.metrics[score], 4) for score in ("mAP", "rank1")}
    version, uri = register(run, name or experiment, model, example, tags)
    run.tags({"registered": uri})
    line = f"{uri}: {best.record.name}, mAP {100 * best.record.metrics['mAP']:.1f}, version {version}"
    Screen().say(escape(line))
    run.tracker.check_delivered()
    return uri


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the trial with the highest mAP, the first one if several are equal."""
    return max((one for one in trials if one.outcome), key=lambda one: one.record.metrics["mAP"])


def fetch_weights(client: "MlflowClient", run_id: str, folder: Path) -> Path:
    """Download the weights that a stage's run logged.

    Raises:
        UserError: The run has no weights, or the artifact store does not return them.
    """
    from mlflow.exceptions import MlflowException

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        listed = [file.path for file in client.list_artifacts(run_id, "weights")]
        found = [path for path in listed if path.endswith(".safetensors")]
        if found:
            return Path(client.download_artifacts(run_id, found[0], str(folder)))
    except (MlflowException, OSError) as error:
        raise UserError(f"MLflow does not return the weights of run {run_id} ({one_line(error)})") from None
    raise UserError(f"MLflow's run {run_id} holds no weights to register")


def register(
    run: Run, name: str, model: torch.nn.Module, example: torch.Tensor, tags: Mapping[str, object]
) -> tuple[str, str]:
    """Log a model in a run as `model/`, and register it as the next version of `name`.

    The model is stored as an exported graph (`pt2`), so `mlflow.pytorch.load_model("models:/NAME/VERSION")` needs only
    torch.

    Args:
        run: The run that produced the model.
        name: Name of the registered model, created if it is new.
        model: The model in eval mode, on the CPU.
        example: Input (B, …) with B > 1, because a batch of one would become part of the graph.
        tags: Tags of the version.

    Returns:
        The version, and the URI of it.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    logging.getLogger("mlflow.pytorch").setLevel(logging.ERROR)
    with torch.no_grad():
        features = model(example)
    signature = ModelSignature(
        Schema([TensorSpec(example.numpy().dtype, (-1, *example.shape[1:]), "images")]),
        Schema([TensorSpec(features.numpy().dtype, (-1, *features.shape[1:]), "features")]),
    )
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / _FOLDER
        mlflow.pytorch.save_model(
            model,
            str(path),
            signature=signature,
            input_example=example.numpy(),
            serialization_format="pt2",
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}", f"mlflow=={mlflow.__version__}"],
        )
        run.client.log_artifacts(run.id, str(path), _FOLDER)
    try:
        run.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = run.client.create_model_version(
        name,
        source=f"runs:/{run.id}/{_FOLDER}",
        run_id=run.id,
        tags={key: str(value) for key, value in tags.items()},
    )
    return str(version.version), f"models:/{name}/{version.version}"
