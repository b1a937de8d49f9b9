"""Where the experiment runs while it is disturbed: a disk of its own, an MLflow server, and the command."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import yaml

DISK_MIB = 400
STUCK_SECONDS = 600.0
"""So long may a command say nothing before it counts as stuck."""

EXPERIMENT = {
    "name": "soak",
    "pool": {"dataset": "synthetic", "options": {"part": "pool", "images": 120, "size": [64, 32]}},
    "target": {
        "dataset": "synthetic",
        "options": {"part": "target", "size": [64, 32], "identities": 10, "test_identities": 6, "cameras": 3},
    },
    "backbone": {"name": "vit_tiny", "depth": 1, "img_size": [64, 32]},
    "pretrain": {
        "epochs": 3,
        "batch_size": 8,
        "out_dim": 128,
        "hidden_dim": 64,
        "bottleneck_dim": 32,
        "local_crops": 1,
        "precision": "fp32",
        "checkpoint_minutes": 0.02,
    },
    "finetune": {"epochs": 3, "identities": 4, "precision": "fp32", "checkpoint_minutes": 0.02},
    "score": {"precision": "fp32"},
    "select": {"fraction": 0.5},
    "resources": {"workers": 1, "cpus_per_worker": 1, "gpu": False},
    "compare": [{"label": "none", "pretrain": "none"}, {"label": "CFS half"}],
}


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[bool]:
    """Mount a file system of `DISK_MIB` MiB at a folder, so that it can be filled; yield whether that was possible."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "soak", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


class Server:
    """An MLflow server on a SQLite database in `folder`, which can be killed and started again."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--artifacts-destination", "artifacts"]
        command = [sys.executable, "-m", "mlflow", "server", *store, "--port", str(self.port), "--workers", "1"]
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True)
        until = time.monotonic() + 180
        while True:
            with contextlib.suppress(URLError, OSError):
                urlopen(f"{self.uri}/health", timeout=2)
                return
            if time.monotonic() > until:
                raise RuntimeError(f"the MLflow server did not start: see {self.folder / 'log'}")
            time.sleep(0.5)

    def kill(self) -> None:
        """Kill it and its workers."""
        if self._process is not None:
            kill(self._process)


class Command:
    """`rayreid run` on one output root, started again as often as it ends without success.

    Attributes:
        log: What it has printed, over all starts.
        began: When the last start was (`time.monotonic`).
        peak_mib: Greatest resident memory of the driver that was seen.
    """

    def __init__(self, file: Path, root: Path, uri: str, log: Path):
        self.file, self.root, self.log = file, root, log
        self._uri = uri
        self._process: subprocess.Popen[bytes] | None = None
        self.began, self.peak_mib = 0.0, 0.0
        self._printed, self._said = 0, 0.0

    def start(self) -> None:
        """Start it in a session of its own."""
        left_out = ("RAY_ADDRESS", "RAYREID_DATA", "RAYREID_CACHE")
        inherited = {name: value for name, value in os.environ.items() if name not in left_out}
        settings = {"RAYREID_ROOT": str(self.root), "MLFLOW_TRACKING_URI": self._uri, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "rayreid.cli", "run", str(self.file)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=inherited | settings, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.began = self._said = time.monotonic()

    @property
    def driver(self) -> psutil.Process | None:
        """The driver; None if it has ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            if self._process is not None and self.status is None:
                return psutil.Process(self._process.pid)
        return None

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._process.poll() if self._process is not None else None

    def tree(self) -> list[psutil.Process]:
        """Return the driver and everything that it has started."""
        driver = self.driver
        with contextlib.suppress(psutil.NoSuchProcess):
            return [] if driver is None else [driver, *driver.children(recursive=True)]
        return []

    def kill(self, everything: bool) -> None:
        """Kill the driver, or with it all that it has started."""
        if self._process is None:
            return
        if everything:
            kill(self._process)
        else:
            self._process.kill()
            self._process.wait()

    def watch(self) -> bool:
        """Look at it; return whether it has been silent for too long."""
        size = self.log.stat().st_size
        if size > self._printed:
            self._printed, self._said = size, time.monotonic()
        with contextlib.suppress(psutil.NoSuchProcess):
            if driver := self.driver:
                self.peak_mib = max(self.peak_mib, driver.memory_info().rss / 2**20)
        return time.monotonic() - self._said > STUCK_SECONDS

    def text(self) -> str:
        """Return all that it has printed."""
        return self.log.read_text(errors="replace")


def kill(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL a process and all that it has started; all are stopped first, so that none reacts to another's end."""
    tree = []
    with contextlib.suppress(psutil.NoSuchProcess):
        first = psutil.Process(process.pid)
        tree = [first, *first.children(recursive=True)]
    for signal in ("suspend", "kill"):
        for one in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(one, signal)()
    process.wait()  # first: if psutil asked for its status, it would be lost here and read as 0
    psutil.wait_procs(tree, 20)


def of_root(root: Path) -> list[psutil.Process]:
    """Return the processes that were started for an output root, whoever their parent is now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RAYREID_ROOT") == str(root):
                found.append(process)
    return found


def write_experiment(path: Path) -> None:
    """Write the experiment file."""
    path.write_text(yaml.safe_dump(EXPERIMENT, sort_keys=False))
