"""All of MLflow: runs that nest, and the delivery of workers' metrics from the driver.

Default store: SQLite in the output root, no server needed; `MLFLOW_TRACKING_URI` overrides. Runs are handled by id
through the client, never through MLflow's global active run, so several can be open at once and one can be continued
by a later process.
"""

import json
import logging
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayreid import __version__
from rayreid.artifacts import make_folder, write_atomically
from rayreid.errors import UserError
from rayreid.journal import Journal

_PARENT = "mlflow.parentRunId"
_PARAM_LIMIT = 6000


def tracking_uri(root: Path) -> str:
    """Where runs are stored: `MLFLOW_TRACKING_URI`, else a database in the output root."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow.db'}"


class Tracker:
    """The experiment under which runs are kept; opening it creates the database and the experiment.

    Args:
        root: the outputs' root; artifacts of the default store go to `<root>/mlartifacts`.
        experiment: MLflow experiment name.

    Raises:
        UserError: the tracking store cannot be used, or the experiment was deleted there.
    """

    def __init__(self, root: Path, experiment: str = "rayreid"):
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        # After the import, which sets levels of its own.
        for chatter in ("alembic", "mlflow", "mlflow.store.db.utils"):
            logging.getLogger(chatter).setLevel(logging.WARNING)

        make_folder(root)
        self.uri = tracking_uri(root)
        try:
            self.client = MlflowClient(self.uri)
            found = self.client.get_experiment_by_name(experiment)
            location = (root / "mlartifacts").as_uri() if self.uri.startswith("sqlite") else None
            self.experiment_id = (
                found.experiment_id if found else self.client.create_experiment(experiment, artifact_location=location)
            )
        except (MlflowException, SQLAlchemyError, ImportError) as error:  # ImportError: of a database's driver
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise UserError(f"MLflow at {self.uri} cannot be used ({reason}); see MLFLOW_TRACKING_URI") from None
        if found and found.lifecycle_stage != "active":
            raise UserError(
                f"the MLflow experiment {experiment!r} at {self.uri} was deleted; restore it by mlflow experiments "
                f"restore --experiment-id {found.experiment_id} (with MLFLOW_TRACKING_URI), or choose another name"
            )

    def run(self, name: str, tags: Mapping[str, Any] | None = None, parent: "Run | None" = None) -> "Run":
        """Start a run, under `parent` if given."""
        # A submitted job carries no checkout: there the version alone tells the code.
        code = {"rayreid": __version__, "git_sha": git_sha()}
        tags = {key: str(value) for key, value in {**code, **(tags or {})}.items() if value is not None}
        if parent is not None:
            tags[_PARENT] = parent.id
        created = self.client.create_run(self.experiment_id, run_name=name, tags=tags)
        return Run(self, created.info.run_id)

    def resume(self, run_id: str) -> "Run | None":
        """Continue a run of an earlier process; None where this store does not know it."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.set_terminated(run_id, "RUNNING")
        except MlflowException:
            return None
        return Run(self, run_id)


class Run:
    """One MLflow run; as a context manager it ends FINISHED or FAILED."""

    def __init__(self, tracker: Tracker, run_id: str):
        self.tracker = tracker
        self.client = tracker.client
        self.id = run_id

    def child(self, name: str, tags: Mapping[str, Any] | None = None) -> "Run":
        """Start a run nested under this one."""
        return self.tracker.run(name, tags, parent=self)

    def params(self, flat: Mapping[str, Any]) -> None:
        """Log parameters (dotted keys)."""
        from mlflow.entities import Param

        params = [Param(key, str(value)[:_PARAM_LIMIT]) for key, value in flat.items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(self.id, params=params[start : start + 100])

    def tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags."""
        for key, value in tags.items():
            self.client.set_tag(self.id, key, str(value))

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics of one step."""
        self.history([{"step": step, **values}])

    def history(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Log many steps in one go; each row holds `step`, optionally `time` (seconds), and metrics."""
        import time

        from mlflow.entities import Metric

        metrics = [
            Metric(key, float(value), int(row.get("time", time.time()) * 1000), int(row["step"]))
            for row in rows
            for key, value in row.items()
            if key not in ("step", "time")
        ]
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(self.id, metrics=metrics[start : start + 1000])

    def dataset(self, name: str, fingerprint: str, source: str, profile: Mapping[str, Any], context: str) -> None:
        """Log an input dataset with its fingerprint."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        entity = Dataset(
            name=name,
            digest=fingerprint[:36],
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps(dict(profile)),
        )
        self.client.log_inputs(self.id, [DatasetInput(entity, [InputTag("mlflow.data.context", context)])])

    def figure(self, figure: Any, name: str) -> None:
        """Log a matplotlib figure, e.g. as `figures/cmc.png`."""
        self.client.log_figure(self.id, figure, name)

    def file(self, path: Path, folder: str | None = None) -> None:
        """Log a file as an artifact."""
        self.client.log_artifact(self.id, str(path), folder)

    def text(self, text: str, name: str) -> None:
        """Log a text as an artifact."""
        self.client.log_text(self.id, text, name)

    def finish(self, status: str = "FINISHED") -> None:
        """End the run."""
        self.client.set_terminated(self.id, status)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if error is not None and str(error):
            self.tags({"error": str(error)[:500]})
        self.finish("FINISHED" if kind is None else "KILLED" if kind is KeyboardInterrupt else "FAILED")


class MetricsFeed:
    """Delivers the rows that workers append to `metrics.jsonl`, wherever an earlier process stopped.

    Each metric of each step is delivered once: steps that were run again after a restart are passed over, and several
    rows of one step complete one another.

    A run that is not the one an earlier process delivered to receives all of them. Rows that could not be delivered
    are delivered by the next call.

    Args:
        path: the journal's file (may not exist yet).
        run: the MLflow run that receives them.
    """

    def __init__(self, path: Path, run: Run):
        self.run = run
        self._journal = Journal(path)
        self._mark = path.with_name("delivered.json")
        mark = json.loads(self._mark.read_text()) if self._mark.exists() else {}
        self._last: dict[str, int] = mark["steps"] if mark.get("run") == run.id else {}
        self._offset = 0

    def deliver(self) -> list[dict[str, float]]:
        """Forward what is new in the rows written since the last call; returns it."""
        written, offset = self._journal.read(self._offset)
        rows, last = [], dict(self._last)
        for row in written:
            new = [name for name in row if name not in ("step", "time") and row["step"] > last.get(name, -1)]
            if new:
                rows.append({name: row[name] for name in row if name in ("step", "time", *new)})
                last.update(dict.fromkeys(new, row["step"]))
        if rows:
            self.run.history(rows)
            write_atomically(self._mark, json.dumps({"run": self.run.id, "steps": last}))
        self._last = last
        self._offset = offset
        return rows


def git_sha() -> str | None:
    """The commit of the code's checkout; None outside one."""
    folder = Path(__file__).parent
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
