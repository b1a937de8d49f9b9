"""How fast a training is, and what it has cost."""

import time


class Meter:
    """Throughput since the last reading, and the time spent since the run's beginning.

    Args:
        gpus: how many are at work.

    Attributes:
        spent: seconds that earlier processes spent on the steps done so far.
    """

    def __init__(self, gpus: int) -> None:
        self.gpus = gpus
        self.spent, self.began = 0.0, time.monotonic()
        self.restart()

    def restart(self) -> None:
        """Begin to measure the pace anew."""
        self.images, self.waited, self.since = 0, 0.0, time.monotonic()

    def count(self, images: int, wait: float) -> None:
        """Images of all workers in a micro-batch, and the seconds that this worker waited for it."""
        self.images += images
        self.waited += wait

    def seconds(self) -> float:
        """Spent on all steps so far; what was lost with an interrupted process does not count."""
        return self.spent + time.monotonic() - self.began

    def read(self) -> dict[str, float]:
        """What a row says of it; the pace is measured anew from here."""
        elapsed = max(time.monotonic() - self.since, 1e-9)
        pace = {"images_per_second": self.images / elapsed, "wait": self.waited / elapsed}
        self.restart()
        return {**pace, "gpu_hours": self.gpus * self.seconds() / 3600}
