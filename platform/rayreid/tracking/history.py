"""Reading runs back from MLflow: all that a report is made from."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rayreid.errors import UserError
from rayreid.tracking.outage import reason
from rayreid.tracking.run import PARENT

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

_PAGE = 500


@dataclass(frozen=True)
class Record:
    """One run as MLflow keeps it.

    Attributes:
        id: of the run.
        name: shown in the UI.
        status: RUNNING, FINISHED, FAILED or KILLED.
        tags, params: texts by name.
        metrics: the last value of each.
    """

    id: str
    name: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]

    @property
    def is_stage(self) -> bool:
        """Whether it made one artifact; otherwise it is an experiment, a row or a sweep."""
        return "stage" in self.tags


class History:
    """The runs of a tracking store; nothing is written.

    Args:
        uri: of the store.

    Raises:
        UserError: there is no such database.
    """

    def __init__(self, uri: str):
        from mlflow import MlflowClient

        database = uri.removeprefix("sqlite:///")
        if database != uri and not Path(database).is_file():  # the client would make one
            raise UserError(f"{database}: no MLflow database; set RAYREID_ROOT or MLFLOW_TRACKING_URI")
        self.uri = uri
        self.client = MlflowClient(uri)

    def tops(self, name: str) -> list[Record]:
        """The outermost runs of an experiment file of this name, the newest first.

        Raises:
            UserError: MLflow knows no such experiment, or does not answer.
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
        """The runs directly under one, in the order in which they began."""
        experiment = self.client.get_run(run.id).info.experiment_id
        return list(self._search(experiment, f"tags.`{PARENT}` = '{run.id}'"))[::-1]

    def get(self, run_id: str) -> Record | None:
        """A run by its id; None where it was deleted for good, or is another store's."""
        from mlflow.exceptions import MlflowException

        try:
            return _record(self.client.get_run(run_id))
        except MlflowException:
            return None

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
