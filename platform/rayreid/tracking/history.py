"""Reads runs back from MLflow; reports are made from this alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayreid.errors import UserError
from rayreid.tracking.damage import check_whole
from rayreid.tracking.database import file_of
from rayreid.tracking.outage import reason
from rayreid.tracking.run import PARENT

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

_PAGE = 500
_NO_RUN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""Codes of MLflow's errors for an id that no run has, and for one that no run can have."""


@dataclass(frozen=True)
class Record:
    """One run as stored in MLflow.

    Attributes:
        id: Run id.
        name: Name shown in the UI.
        status: RUNNING, FINISHED, FAILED or KILLED.
        tags, params: Values (text) by name.
        metrics: Last value of each metric, by name.
    """

    id: str
    name: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]

    @property
    def is_stage(self) -> bool:
        """Whether the run made one artifact; otherwise it is an experiment, a row or a sweep."""
        return "stage" in self.tags


class History:
    """Read-only access to the runs of a tracking store.

    Args:
        uri: URI of the tracking store.

    Raises:
        UserError: The database does not exist, or is damaged.
    """

    def __init__(self, uri: str):
        from mlflow import MlflowClient

        database = file_of(uri)
        if database is not None and not database.is_file():  # the client would create it
            raise UserError(f"{database}: no MLflow database; set RAYREID_ROOT or MLFLOW_TRACKING_URI")
        check_whole(uri)
        self.uri = uri
        self.client = MlflowClient(uri)

    def tops(self, name: str) -> list[Record]:
        """Return the top-level runs of the experiment called `name`, newest first.

        Raises:
            UserError: MLflow has no experiment of that name, or does not answer.
        """
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_experiment_by_name(name)
        except MlflowException as error:
            raise UserError(f"MLflow at {self.uri} cannot be read ({reason(error)})") from None
        if found is None:
            known = [one.name for one in self.client.search_experiments(max_results=20) if one.name != "Default"]
            raise UserError(f"MLflow at {self.uri} has no experiment {name!r}; known: {', '.join(known) or 'none'}")
        ours = self._search(found.experiment_id, "tags.experiment LIKE '%'")
        return [run for run in ours if PARENT not in run.tags]

    def children(self, run: Record) -> list[Record]:
        """Return the runs nested directly under `run`, in the order in which they started."""
        experiment = self.client.get_run(run.id).info.experiment_id
        return list(self._search(experiment, f"tags.`{PARENT}` = '{run.id}'"))[::-1]

    def get(self, run_id: str) -> Record | None:
        """Return the run with this id, or None if it was deleted permanently or belongs to another store.

        Raises:
            UserError: MLflow does not answer, or refuses to.
        """
        from mlflow.exceptions import MlflowException

        try:
            return _record(self.client.get_run(run_id))
        except MlflowException as error:
            if error.error_code in _NO_RUN:
                return None
            raise UserError(f"MLflow at {self.uri} cannot be read ({reason(error)})") from None

    def registered(self) -> dict[str, Mapping[str, str]]:
        """Return the tags of the runs from which models were registered, by the URI of the model's version.

        Raises:
            UserError: MLflow does not answer.
        """
        from mlflow.exceptions import MlflowException

        try:
            versions = list(self.client.search_model_versions())
        except MlflowException as error:
            raise UserError(f"MLflow at {self.uri} cannot be read ({reason(error)})") from None
        runs = {f"models:/{one.name}/{one.version}": self.get(one.run_id) for one in versions if one.run_id}
        return {uri: run.tags for uri, run in runs.items() if run is not None}

    def _search(self, experiment: str, condition: str) -> Iterator[Record]:
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [experiment], condition, max_results=_PAGE, order_by=["attributes.start_time DESC"], page_token=token
            )
            yield from map(_record, page)
            token = page.token
            if not token:
                return


def _record(run: "MlflowRun") -> Record:
    return Record(run.info.run_id, run.info.run_name, run.info.status, run.data.tags, run.data.params, run.data.metrics)
