"""Ends MLflow runs whose processes are gone and can no longer end them."""

from collections.abc import Iterator
from contextlib import contextmanager

from rayreid.tracking.run import PARENT, Run


@contextmanager
def ending(parent: Run) -> Iterator[None]:
    """End every run below `parent` that is still RUNNING when the block is left.

    By then the process of each trial is gone, or ends together with this one.
    """
    status = "KILLED"  # for example, `ray job stop` ends this process
    try:
        yield
        status = "FAILED"
    finally:
        end_below(parent, status)


def end_below(parent: Run, status: str) -> None:
    """End all runs below `parent` that are RUNNING; while the store is unreachable they stay RUNNING."""
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
        run.deliver()  # its end may be waiting in the outbox
        if tracker.client.get_run(run.id).info.status == "RUNNING":
            run.finish(status)
