"""A Ray that a command starts is reached through the loopback alone, and by nobody who does not have its token."""

import contextlib
import http.client
import ipaddress
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest
import ray

from rayreid.execution.connection import connect
from rayreid.execution.private_ray import meeting_place, private
from rayreid.execution.ray_trainer import Trainer

WRONG = "0" * 64
"""A token of the form that Ray accepts; that of a session is random."""

INTRUDER = """
import os, sys
import ray
from ray._private import ray_constants
ray_constants.ENABLE_RAY_CLUSTER = False  # otherwise Ray looks for a loopback address at the machine's own
ray.init(sys.argv[1], log_to_driver=False)
print(ray.get(ray.remote(lambda: 6 * 7).remote()))
"""


def listening() -> list[tuple[str, str, int]]:
    """The processes of this session that listen, with their addresses and ports."""
    own = psutil.Process()
    return [
        (" ".join(process.cmdline())[:80] or process.name(), connection.laddr.ip, connection.laddr.port)
        for process in [own, *own.children(recursive=True)]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN or not connection.raddr
    ]


def on_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def intrude(address: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A task of another process of this machine, which has nothing but what it is given."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
    command = [sys.executable, "-c", INTRUDER, address]
    return subprocess.run(
        command, env={**clean, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


def worker(config: dict[str, str]) -> None:
    import torch
    import torch.distributed as dist

    summed = torch.ones(1)
    dist.all_reduce(summed)
    found = [f"{name} {address}" for name, address, _ in listening() if not on_loopback(address)]
    Path(config["folder"], f"{dist.get_rank()}").write_text(f"{int(summed)} {found}")


@pytest.fixture(scope="module")
def session(no_shared_ray, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYREID_ROOT", str(tmp_path_factory.mktemp("outputs")))
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # for workers, which run a function of this module
        patch.setenv("RAY_AUTH_MODE", "disabled")  # what a user says of their own clusters does not open this one
        patch.setenv("RAY_AUTH_TOKEN", "a user's own")
        with connect():
            yield ray.get_runtime_context().gcs_address
        assert os.environ["RAY_AUTH_MODE"] == "disabled" and os.environ["RAY_AUTH_TOKEN"] == "a user's own"


def test_the_token_is_the_user_s_alone_and_goes_with_the_block(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    tokens = []
    for _ in range(2):
        with private():
            path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
            assert os.environ["RAY_AUTH_MODE"] == "token"
            assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
            tokens.append(path.read_text())
        assert not path.parent.exists()
        assert os.environ["RAY_AUTH_MODE"] == "disabled" and "RAY_AUTH_TOKEN_PATH" not in os.environ
    assert len(set(tokens)) == 2 and all(len(token) == 64 for token in tokens)


@pytest.mark.ray
def test_only_the_loopback_is_listened_on(session):
    @ray.remote
    def of_worker() -> bool:
        return meeting_place() is not None

    assert ray.get(of_worker.remote())
    found = listening()
    assert len(found) > 5  # GCS, raylet, object manager, agents
    assert [one for one in found if not on_loopback(one[1])] == []


@pytest.mark.ray
def test_no_other_user_reaches_ray_s_files(session):
    """Ray opens the folder that it gets to everyone."""
    folder = Path(ray._private.worker._global_node.get_session_dir_path())
    above = [path for path in folder.parents if path == Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent]
    assert [path.stat().st_mode & 0o777 for path in above] == [0o700]


@pytest.mark.ray
def test_the_workers_of_a_training_listen_on_the_loopback_too(session, tmp_path):
    trainer = Trainer(
        worker,
        train_loop_config={"folder": str(tmp_path)},
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=ray.train.RunConfig(name="private", storage_path=str(tmp_path / "ray")),
    )
    trainer.fit()
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["2 []", "2 []"]


@pytest.mark.ray
@pytest.mark.parametrize(
    "environment", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": WRONG}], ids=["none", "wrong"]
)
def test_a_task_without_the_token_is_refused(session, environment):
    refused = intrude(session, **{"RAY_AUTH_MODE": "token", **environment})
    assert refused.returncode != 0 and "42" not in refused.stdout
    assert "authentication" in refused.stderr.lower(), refused.stderr[-2000:]


@pytest.mark.ray
def test_a_task_with_the_token_runs(session):
    done = intrude(session, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=os.environ["RAY_AUTH_TOKEN_PATH"])
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr[-2000:]


@pytest.mark.ray
@pytest.mark.parametrize("token", [None, WRONG], ids=["none", "wrong"])
def test_no_listener_takes_a_job_or_tells_its_metrics_without_the_token(session, token):
    """Ray's agent would do both by HTTP. It is started without these servers, and nothing else answers so."""
    authorization = {"Authorization": f"Bearer {token}"} if token else {}
    headers = {"Content-Type": "application/json", **authorization}
    answered, found = [], listening()
    assert len(found) > 5
    for name, _, port in found:
        for path, body in (("api/job_agent/jobs/", b'{"entrypoint": "true"}'), ("metrics", None)):
            request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", body, headers)
            with contextlib.suppress(OSError, http.client.HTTPException):
                answered.append((name, path, urllib.request.urlopen(request, timeout=5).status))
    assert answered == []


@pytest.mark.ray
def test_the_token_is_in_no_log_no_command_line_and_no_environment(session):
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
    folder = Path(ray._private.worker._global_node.get_session_dir_path())
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files and not [path for path in files if token.encode() in path.read_bytes()]
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        assert token not in str(process.cmdline()) and token not in str(process.environ())
