"""A head node as an administrator would start it, and jobs that are submitted to it from another folder."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import psutil

REPOSITORY = Path(__file__).parent.parent
RAY = str(Path(sys.executable).parent / "ray")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Head:
    """Where jobs are submitted to.

    Attributes:
        address: of its job server.
        environment: of who submits.
        root: the outputs.
        session: Ray's own folder.
    """

    address: str
    environment: dict[str, str]
    root: Path
    session: Path

    def wait_until_up(self) -> None:
        for _ in range(180):  # on a busy machine minutes
            try:
                urlopen(f"{self.address}/api/version", timeout=2)
                return
            except HTTPError:  # it asks for a token: it is up
                return
            except (URLError, OSError):
                time.sleep(1)
        raise AssertionError("the head node did not come up")

    def ask(self, tree: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`ray job …` from a folder; the head answers before its job agent is up, so again until it is."""
        command = [RAY, "job", arguments[0], f"--address={self.address}", *arguments[1:]]
        for _ in range(20):
            done = subprocess.run(
                command, cwd=tree, env=self.environment | environment, capture_output=True, text=True, timeout=400
            )
            if "No available agent" not in done.stderr:
                return done
            time.sleep(2)
        raise AssertionError("the job agent did not come up")

    def submit(self, tree: Path, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """A job of the repository's own, as its documents have it."""
        travels = ("--working-dir=.", "--runtime-env=jobs/runtime_env.yaml")
        return self.ask(tree, "submit", *travels, *options, "--", "python", *arguments)


@contextlib.contextmanager
def started(root: Path, **environment: str) -> Iterator[Head]:
    """A head with two CPUs; its processes and those of its jobs are killed in the end."""
    address = f"http://127.0.0.1:{free_port()}"
    left_out = ("PYTHONPATH", "RAY_ADDRESS", "RAYREID_DATA", "MLFLOW_TRACKING_URI")
    inherited = {key: value for key, value in os.environ.items() if key not in left_out}
    settings = {"RAYREID_ROOT": str(root), "RAY_USAGE_STATS_ENABLED": "0", **environment}
    settings["PATH"] = f"{Path(RAY).parent}{os.pathsep}{inherited['PATH']}"
    ports = [f"--port={free_port()}", f"--dashboard-port={address.rsplit(':', 1)[1]}", "--dashboard-host=127.0.0.1"]
    ports += [f"--dashboard-agent-listen-port={free_port()}"]  # the default may be taken by another cluster
    # A short path: Ray's sockets lie below it.
    temporary = Path(os.environ.get("TMPDIR", "/tmp")) / f"rr{os.getpid()}"
    command = [RAY, "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={temporary}", *ports]
    process = subprocess.Popen(command, env=inherited | settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield Head(address, inherited | settings, root, temporary / "session_latest")
    finally:
        # Not `ray stop`, which would also end every other cluster of this machine.
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait(30)
        shutil.rmtree(temporary, ignore_errors=True)


def checkout(tree: Path, file: Path) -> Path:
    """A copy of what a job needs of the repository, with an experiment's file in it, and things that must stay."""
    for part in ("platform", "jobs"):
        shutil.copytree(REPOSITORY / part, tree / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("constraints.txt", ".gitignore"):
        shutil.copy(REPOSITORY / name, tree)
    shutil.copy(file, tree)
    for stays in (
        ".git/config",
        ".venv/pyvenv.cfg",
        "data/image.jpg",
        "outputs/pretrain/w.pt",
        "mlruns/0/meta.yaml",
        "mlflow.db",
        "tests/golden/x.npz",
    ):
        (tree / stays).parent.mkdir(parents=True, exist_ok=True)
        (tree / stays).write_text("stays")
    return tree
