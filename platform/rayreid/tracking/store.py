"""The MLflow store itself: where it is, opening it, and how each kind of thing is written to a run in it."""

import json
import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from rayreid.errors import UserError
from rayreid.storage.lease import Lease
from rayreid.tracking.outage import Outage, reason

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
_LEASE = ".mlflow-lease.json"


def tracking_uri(root: Path) -> str:
    """Where runs are stored: `MLFLOW_TRACKING_URI`, else a database in the output root."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}{root / 'mlflow.db'}"
    # A trial's current folder is another than its sweep's.
    return f"{_SQLITE}{Path(uri.removeprefix(_SQLITE)).absolute()}" if uri.startswith(_SQLITE) else uri


def open_store(root: Path, uri: str, experiment: str, outage: Outage, patience: float) -> "tuple[MlflowClient, str]":
    """Its client, and the id of an experiment there, which is made where there is none of that name.

    Args:
        root: the outputs' root; artifacts of a database go to `<root>/mlartifacts`.
        uri: of the store.
        experiment: its name.
        outage: waits for a store that is away.
        patience: seconds to wait so.

    Raises:
        UserError: the store cannot be used, or the experiment was deleted there.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    # After the import, which sets levels of its own.
    for chatter in ("alembic", "mlflow", "mlflow.store.db.utils"):
        logging.getLogger(chatter).setLevel(logging.WARNING)
    try:
        with _alone(root, uri):
            client = MlflowClient(uri)
            found = outage.wait(lambda: client.get_experiment_by_name(experiment), patience)
            identifier = found.experiment_id if found else _create(client, experiment, root, uri)
    except (MlflowException, SQLAlchemyError, ImportError) as error:  # ImportError: of a database's driver
        raise UserError(f"MLflow at {uri} cannot be used ({reason(error)}); see MLFLOW_TRACKING_URI") from None
    if found and found.lifecycle_stage != "active":
        raise UserError(
            f"the MLflow experiment {experiment!r} at {uri} was deleted; restore it by mlflow experiments "
            f"restore --experiment-id {found.experiment_id} (with MLFLOW_TRACKING_URI), or choose another name"
        )
    return client, str(identifier)


def send(client: "MlflowClient", run_id: str, kind: str, what: Mapping[str, Any], payload: Path | None) -> None:
    """Write one thing to a run.

    Args:
        client: of the store.
        run_id: the run.
        kind: params, tags, dataset, artifact, file or end.
        what: its content, as plain JSON values.
        payload: an artifact's file.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    match kind:
        case "params":
            params = [Param(key, value) for key, value in what.items()]
            for start in range(0, len(params), 100):
                client.log_batch(run_id, params=params[start : start + 100])
        case "tags":
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in what.items()])
        case "dataset":
            source, profile = json.dumps({"uri": what["source"]}), json.dumps(what["profile"])
            entity = Dataset(what["name"], what["digest"], "local", source, profile=profile)
            client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", what["context"])])])
        case "artifact":
            folder = str(PurePosixPath(what["name"]).parent)
            client.log_artifact(run_id, str(payload), None if folder == "." else folder)
        case "file":
            client.log_artifact(run_id, what["path"], what["folder"])
        case "end":
            client.set_terminated(run_id, what["status"], int(what["time"] * 1000))


def _alone(root: Path, uri: str) -> AbstractContextManager[object]:
    """A new database is filled by whoever opens it first; two at once would break it."""
    return Lease(root / _LEASE, poll=0.1) if uri.startswith(_SQLITE) else nullcontext()


def _create(client: "MlflowClient", experiment: str, root: Path, uri: str) -> str:
    """A new experiment's id; or that of one that another process has made meanwhile."""
    from mlflow.exceptions import MlflowException

    location = (root / "mlartifacts").as_uri() if uri.startswith(_SQLITE) else None
    try:
        return str(client.create_experiment(experiment, artifact_location=location))
    except MlflowException:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise
        return str(found.experiment_id)
