"""An experiment submitted as a Ray job to a local cluster: the package travels with the working directory."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.ray
REPOSITORY = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def head(tmp_path_factory):
    """A head node started as an administrator would; yields (job address, output root)."""
    root = tmp_path_factory.mktemp("outputs")
    address = f"http://127.0.0.1:{free_port()}"
    left_out = ("PYTHONPATH", "RAY_ADDRESS", "RAYREID_DATA", "MLFLOW_TRACKING_URI")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    binaries = Path(sys.executable).parent
    environment |= {"RAYREID_ROOT": str(root), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PATH"] = f"{binaries}{os.pathsep}{environment['PATH']}"
    ray = str(binaries / "ray")
    ports = [f"--port={free_port()}", f"--dashboard-port={address.rsplit(':', 1)[1]}", "--dashboard-host=127.0.0.1"]
    ports += [f"--dashboard-agent-listen-port={free_port()}"]  # the default may be taken by another cluster
    # A short path: Ray's sockets lie below it.
    temporary = Path(os.environ.get("TMPDIR", "/tmp")) / f"rr{os.getpid()}"
    command = [ray, "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={temporary}", *ports]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield ray, address, environment, root
    # Not `ray stop`, which would also end every other cluster of this machine.
    for child in [*psutil.Process(process.pid).children(recursive=True), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait(30)
    shutil.rmtree(temporary, ignore_errors=True)


def wait_until_up(address: str) -> None:
    from urllib.error import URLError
    from urllib.request import urlopen

    for _ in range(60):
        try:
            urlopen(f"{address}/api/version", timeout=2)
            return
        except (URLError, OSError):
            time.sleep(1)
    raise AssertionError("the head node did not come up")


def submit(command: list[str], tree: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Submit a job and wait for its end; the head answers before its job agent is up, so try again until it is."""
    for _ in range(20):
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=400)
        if "No available agent" not in done.stderr:
            return done
        time.sleep(2)
    raise AssertionError("the job agent did not come up")


def test_a_submitted_job_does_the_same(head, tiny):
    ray, address, environment, root = head
    wait_until_up(address)
    tree = tiny(pretrain="none").parent / "tree"
    for part in ("platform", "jobs"):
        shutil.copytree(REPOSITORY / part, tree / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(tree.parent / "tiny.yaml", tree)
    command = [ray, "job", "submit", f"--address={address}", "--working-dir=.", "--runtime-env=jobs/runtime_env.yaml"]
    command += ["--", "python", "jobs/run.py", "tiny.yaml"]

    done = submit(command, tree, environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Rank-1" in done.stdout
    evaluations = list((root / "evaluate").iterdir())
    assert len(evaluations) == 1 and (evaluations[0] / "artifact.json").exists()

    refused = submit([*command, "target.dataset=market1501", "target.root=data"], tree, environment)
    assert refused.returncode != 0
    assert "relative path inside a submitted job" in refused.stdout
