"""The model registry of MLflow: a model of a finished run, with a signature, loadable without this project."""

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayreid.errors import UserError
from rayreid.tracking import Run

if TYPE_CHECKING:
    import torch

_FOLDER = "model"


def fetch_weights(client: Any, run_id: str, folder: Path) -> Path:
    """Download the weights that a stage's run logged.

    Raises:
        UserError: the run has none, or its artifact store does not give them.
    """
    from mlflow.exceptions import MlflowException

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        listed = [file.path for file in client.list_artifacts(run_id, "weights")]
        found = [path for path in listed if path.endswith(".safetensors")]
        if found:
            return Path(client.download_artifacts(run_id, found[0], str(folder)))
    except (MlflowException, OSError) as error:
        raise UserError(f"MLflow does not give the weights of run {run_id} ({str(error).splitlines()[0]})") from None
    raise UserError(f"MLflow's run {run_id} holds no weights to register")


def register(
    run: Run, name: str, model: "torch.nn.Module", example: "torch.Tensor", tags: Mapping[str, Any]
) -> tuple[str, str]:
    """Log a model in a run as `model/`, and register it as the next version of `name`.

    It is stored as an exported graph (`pt2`): `mlflow.pytorch.load_model("models:/NAME/VERSION")` needs torch alone.

    Args:
        run: the run that it comes from.
        name: of the registered model; made if it is new.
        model: in eval mode, on the CPU.
        example: input (B, …) with B > 1, or the batch would become part of the graph.
        tags: of the version.

    Returns:
        Version and URI.
    """
    import mlflow
    import torch
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
