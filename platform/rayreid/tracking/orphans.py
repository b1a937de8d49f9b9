"""Runs in MLflow whose processes are gone and cannot say so themselves."""

from collections.abc import Iterator
from contextlib import contextmanager

from rayreid.tracking.run import PARENT, Run


@contextmanager
def ending(parent: Run) -> Iterator[None]:
    """Leave no run below one RUNNING: the process of a trial is gone by the end, or goes with this one."""
    status = "KILLED"  # where `ray job stop` ends this process, say
    try:
        yield
        status = "FAILED"
    finally:
        end_below(parent, status)


def end_below(parent: Run, status: str) -> None:
    """End all runs below one that are RUNNING; where the store is away they stay so."""
    tracker = parent.tracker
    under = f"attributes.status = 'RUNNING' and tags.`{PARENT}` = '{parent.id}'"
    try:
        left = tracker.client.search_runs([tracker.experiment_id], under)
    except Exception as error:
        if not tracker.outage.began(error):
            raise
        return
    for one in left:
        run = Run(tracker, one.info.run_id)
        end_below(run, status)
        run.deliver()  # its end may be owed
        if tracker.client.get_run(run.id).info.status == "RUNNING":
            run.finish(status)
