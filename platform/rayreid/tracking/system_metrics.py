"""System metrics of the driver's machine, logged to MLflow while an experiment runs."""

from collections.abc import Iterator
from contextlib import contextmanager

from rayreid.tracking.run import Run


@contextmanager
def watched(run: Run) -> Iterator[None]:
    """Log this machine's CPU, memory, disk, network and, where possible, GPU figures every ten seconds as `system/…`.

    Logging stops when the store becomes unreachable: system metrics are no results, so losing them is acceptable.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run.id, resume_logging=True, tracking_uri=run.tracker.uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
