"""Speed and cost of a training."""

import time


class Meter:
    """Throughput since the last reading, and the time spent since the beginning of the run.

    Args:
        gpus: Number of GPUs at work.

    Attributes:
        spent: Seconds that earlier processes spent on the steps done so far.
    """

    def __init__(self, gpus: int) -> None:
        self.gpus = gpus
        self.spent, self.began = 0.0, time.monotonic()
        self.restart()

    def restart(self) -> None:
        """Restart the measurement of the throughput."""
        self.images, self.waited, self.since = 0, 0.0, time.monotonic()

    def count(self, images: int, wait: float) -> None:
        """Count images of all workers in a micro-batch, and the seconds that this worker waited for it."""
        self.images += images
        self.waited += wait

    def seconds(self) -> float:
        """Return the seconds spent on all steps so far; work lost with an interrupted process does not count."""
        return self.spent + time.monotonic() - self.began

    def read(self) -> dict[str, float]:
        """Return the values for a logged row, and restart the measurement of the throughput."""
        elapsed = max(time.monotonic() - self.since, 1e-9)
        pace = {"images_per_second": self.images / elapsed, "wait": self.waited / elapsed}
        self.restart()
        return {**pace, "gpu_hours": self.gpus * self.seconds() / 3600}
