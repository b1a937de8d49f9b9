"""What the driver's machine does while an experiment runs, in MLflow."""

from collections.abc import Iterator
from contextlib import contextmanager

from rayreid.tracking.run import Run


@contextmanager
def watched(run: Run) -> Iterator[None]:
    """Log this process's machine every ten seconds as `system/…`: CPU, memory, disk, network, GPUs where it can.

    It ends where the store goes away: what is lost then is no result.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run.id, resume_logging=True, tracking_uri=run.tracker.uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
