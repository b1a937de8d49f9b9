"""The MLflow tracking store: its URI, opening it, and writing each kind of entry to a run."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from rayreid.disk_faults import as_storage_error
from rayreid.errors import UserError
from rayreid.storage.lease import Lease
from rayreid.tracking.client import client_of
from rayreid.tracking.damage import check_whole, damage_of, remedy
from rayreid.tracking.database import LOCK, SQLITE, artifact_location, check_moved, default_uri, remove_stray_folder
from rayreid.tracking.outage import Outage, reason

if TYPE_CHECKING:
    from mlflow import MlflowClient

LEFT_BY_ATTEMPT = {"error", "stopped"}
"""Tags that say why an attempt has no result; the one that resumes its run removes them."""
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_VIEW = "results"
_RESULT_COLUMNS = (
    "attributes.`Source`",
    *(f"metrics.`{name}`" for name in ("mAP", "rank1", "mINP", "images", "gpu_hours")),
    *(f"tags.`{name}`" for name in ("strategy", "fraction", "stem")),
)
_RESULTS_FIRST = {
    "searchFilter": "tags.level = 'experiment'",
    # MLflow nests runs, folded, in a list that is sorted by date; a list in any other order is flat.
    "orderByKey": "metrics.`mAP`",
    "orderByAsc": False,
    "selectedColumns": _RESULT_COLUMNS,
    "columnOrder": _RESULT_COLUMNS,  # by default that of their names
    "columnWidths": dict.fromkeys(_RESULT_COLUMNS, 90),  # so that Rank-1 is on a narrow screen, too
}
_KIND = "mlflow.experimentKind"
_EXPERIMENT_TAGS = {_KIND: "custom_model_development", f"mlflow.sharedViewState.{_VIEW}": json.dumps(_RESULTS_FIRST)}
"""Tags of an experiment that MLflow's UI reads: its kind, *Model training*, and a view of its list of runs for
`results_page`, since MLflow's own list has no column of a metric and keeps rows folded."""


def tracking_uri(root: Path) -> str:
    """Return the URI of the tracking store: `MLFLOW_TRACKING_URI`, or else a database in the output root.

    Raises:
        UserError: The root has a name with which no URI can name the database.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or default_uri(root)
    # Absolute, because a trial's current folder differs from its sweep's.
    return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}" if uri.startswith(SQLITE) else uri


def results_page(server: str, experiment_id: str) -> str:
    """Return the address at which MLflow's UI lists an experiment's results, the best mAP first.

    MLflow 3.17 opens any other address in its view for language models until the user chooses *Model training* there:
    the choice is kept in the browser, and the experiment's kind does not count.

    Args:
        server: The address of the UI's server.
        experiment_id: MLflow's id of the experiment; `open_store` has given it the view.
    """
    query = f"workflowType=machine_learning&viewStateShareKey={_VIEW}"
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def open_store(root: Path, uri: str, experiment: str, outage: Outage, patience: float) -> "tuple[MlflowClient, str]":
    """Open the tracking store and return its client and the id of an experiment, created if it does not exist.

    Args:
        root: The output root; artifacts of a SQLite store go to `<root>/mlartifacts`.
        uri: URI of the store.
        experiment: Name of the experiment.
        outage: Waits while the store is unreachable.
        patience: Seconds to wait for an unreachable store.

    Raises:
        UserError: The store cannot be used, the experiment was deleted there, or the output root was moved.
    """
    os.environ.setdefault(_RETRIES, "2")
    # A server's client prints two lines with addresses whenever a run ends.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    # Set after the import, because importing MLflow sets log levels of its own.
    for chatter in ("alembic", "mlflow", "mlflow.store.db.utils"):
        logging.getLogger(chatter).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").addFilter(_without_traceback)
    logging.getLogger("mlflow.system_metrics.system_metrics_monitor").setLevel(logging.CRITICAL)  # they are no results
    try:
        with _alone(root, uri):
            own = uri.startswith(SQLITE) and uri == default_uri(root)
            check_whole(uri, root if own else None)
            if own:
                check_moved(root, experiment)
            client = client_of(uri)
            outage.wait(outage.greet, patience)
            found = outage.wait(lambda: client.get_experiment_by_name(experiment), patience)
            identifier = found.experiment_id if found else _create(client, experiment, root, uri)
            if found and found.lifecycle_stage == "active":
                _complete_tags(client, found)
            remove_stray_folder(uri)
    except (MlflowException, SQLAlchemyError, ImportError) as error:  # ImportError: the database's driver is missing
        refused = as_storage_error(error, root) if uri.startswith(SQLITE) else None
        if refused is not None:
            raise refused from None
        damage = damage_of(error, uri)
        if damage is not None:
            raise UserError(f"{damage}: {remedy(uri)}, and run the same command again") from None
        raise UserError(f"MLflow at {uri} cannot be used ({reason(error)}); see MLFLOW_TRACKING_URI") from None
    if found and found.lifecycle_stage != "active":
        raise UserError(
            f"the MLflow experiment {experiment!r} at {uri} was deleted; restore it by mlflow experiments "
            f"restore --experiment-id {found.experiment_id} (with MLFLOW_TRACKING_URI), or choose another name"
        )
    return client, str(identifier)


def send(client: "MlflowClient", run_id: str, kind: str, what: Any, payload: Path | None = None) -> None:
    """Write one entry to a run. Writing it again right afterwards changes nothing.

    That is so since parameters, tags, artifacts, the state and the end of a run replace equal ones, MLflow finds a
    dataset by its name and digest, and ignores a metric of the same name, step, time and value.

    Args:
        client: Client of the store.
        run_id: Id of the run.
        kind: params, tags, rows, dataset, artifact, file, resume or end.
        what: Content of the entry, as plain JSON values.
        payload: The file of an artifact.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    match kind:
        case "params":
            params = [Param(key, value) for key, value in what.items()]
            for start in range(0, len(params), 100):
                client.log_batch(run_id, params=params[start : start + 100])
        case "tags":
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in what.items()])
        case "rows":
            metrics = [
                Metric(key, float(value), int(row["time"] * 1000), int(row["step"]))
                for row in what
                for key, value in row.items()
                if key not in ("step", "time")
            ]
            for start in range(0, len(metrics), 1000):
                client.log_batch(run_id, metrics=metrics[start : start + 1000])
        case "dataset":
            source, profile = json.dumps({"uri": what["source"]}), json.dumps(what["profile"])
            entity = Dataset(what["name"], what["digest"], "local", source, profile=profile)
            client.log_inputs(run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", what["context"])])])
        case "artifact":
            folder = str(PurePosixPath(what["name"]).parent)
            client.log_artifact(run_id, str(payload), None if folder == "." else folder)
        case "file":
            client.log_artifact(run_id, what["path"], what["folder"])
        case "resume":
            client.set_terminated(run_id, "RUNNING")
            for name in LEFT_BY_ATTEMPT & client.get_run(run_id).data.tags.keys():
                client.delete_tag(run_id, name)
        case "end":
            client.set_terminated(run_id, what["status"], int(what["time"] * 1000))


@contextmanager
def without_retries() -> Iterator[None]:
    """Let MLflow's client make each request once: it would also repeat one that was carried out without an answer."""
    before = os.environ.get(_RETRIES)
    os.environ[_RETRIES] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_RETRIES]
        else:
            os.environ[_RETRIES] = before


def _without_traceback(record: logging.LogRecord) -> bool:
    """Drop what MLflow logs of an error of the database before it raises it: a hundred lines that say the same."""
    return not record.exc_info


def _alone(root: Path, uri: str) -> AbstractContextManager[object]:
    """Return a lock to hold while opening the store: two processes that fill a new SQLite database would break it."""
    return Lease(root / LOCK, poll=0.1) if uri.startswith(SQLITE) else nullcontext()


def _create(client: "MlflowClient", experiment: str, root: Path, uri: str) -> str:
    """Create an experiment and return its id, or the id of one that another process created meanwhile."""
    from mlflow.exceptions import MlflowException

    location = artifact_location(root) if uri.startswith(SQLITE) else None
    try:
        return str(client.create_experiment(experiment, artifact_location=location, tags=_EXPERIMENT_TAGS))
    except MlflowException:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise
        return str(found.experiment_id)


def _complete_tags(client: Any, experiment: Any) -> None:
    """Give an experiment of an earlier version the UI's tags; a kind that the user has chosen stays."""
    for key, value in _EXPERIMENT_TAGS.items():
        known = experiment.tags.get(key)
        if known is None or (key != _KIND and known != value):
            client.set_experiment_tag(experiment.experiment_id, key, value)
