"""Which Ray is connected to, and what scoring may use of it; the cluster is only said to be there."""

import os
import socket
import subprocess
import sys
import time

import pytest
import ray

from rayreid.config import Resources
from rayreid.errors import UserError
from rayreid.execution import resources
from rayreid.execution.connection import connect
from rayreid.execution.resources import Share, awaited_share, scoring_actors, training_share

NO_ONE = {"memory": 1e9}
SMALL, LARGE = {"CPU": 2.0}, {"CPU": 3.0}
GPUS, FEW_CPUS = {"CPU": 16.0, "GPU": 4.0}, {"CPU": 2.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([SMALL, LARGE, NO_ONE], Share(5, 1, False)),
        ([NO_ONE], Share(1, 1, False)),
        ([SMALL, GPUS], Share(4, 4, True)),
        ([GPUS, {"CPU": 8.0, "GPU": 1.0}], Share(5, 4, True)),
        ([GPUS, FEW_CPUS], Share(8, 1, True)),
    ],
)
def test_there_is_an_actor_per_gpu_or_else_one_thread_per_cpu(monkeypatch, nodes, expected):
    lost = {"Alive": False, "Resources": {"CPU": 100.0, "GPU": 100.0}}
    monkeypatch.setattr("ray.nodes", lambda: [lost, *({"Alive": True, "Resources": node} for node in nodes)])
    assert scoring_actors() == expected


def alive(*nodes):
    return [{"Alive": True, "Resources": node} for node in nodes]


def test_more_workers_than_gpus_are_refused_unless_the_cluster_is_to_add_nodes(monkeypatch):
    monkeypatch.setattr("ray.nodes", lambda: alive(NO_ONE, {"CPU": 8.0, "GPU": 1.0}))
    assert training_share(Resources()) == Share(1, 8, True)
    with pytest.raises(UserError, match=r"8, but the cluster has 1 GPUs; lower it, or say resources\.gpu=true"):
        training_share(Resources(workers=8))
    assert training_share(Resources(workers=8, gpu=True)) == Share(8, 8, True)


def test_in_the_middle_of_a_command_a_lost_node_is_waited_for(monkeypatch):
    there = [alive(NO_ONE), alive(NO_ONE), alive(NO_ONE, {"CPU": 8.0, "GPU": 1.0})]
    monkeypatch.setattr("ray.nodes", lambda: there.pop(0) if len(there) > 1 else there[0])
    monkeypatch.setattr(resources, "_POLL_SECONDS", 0.01)
    assert awaited_share(Resources()) == Share(1, 8, True) and len(there) == 1
    there[:] = [alive(NO_ONE)]
    with pytest.raises(UserError, match="the cluster has 0 CPUs"):
        awaited_share(Resources(), seconds=0.05)


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What Ray is asked for, in place of Ray; where it listens, only something listens."""
    asked = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *address, **rest: asked.append((*address, rest)))
    monkeypatch.setattr(ray, "shutdown", lambda: asked.append("shutdown"))
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.setenv("RAYREID_ROOT", "outputs")
    monkeypatch.setenv("RAYREID_DATA", "data")
    monkeypatch.chdir(tmp_path)
    return asked


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_cluster_that_is_named_gets_the_package_and_absolute_places(started, port, monkeypatch, tmp_path, form):
    monkeypatch.setenv("RAY_ADDRESS", form.format(port))
    with connect():
        (address, asked) = started[0]
        assert len(started) == 1
    assert address == form.format(port) and started[1:] == ["shutdown"]
    environment = asked["runtime_env"]
    assert [path.rpartition("/")[2] for path in environment["py_modules"]] == ["rayreid"]
    assert environment["env_vars"] == {
        "RAYREID_ROOT": f"{tmp_path}/outputs",
        "RAYREID_DATA": f"{tmp_path}/data",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/outputs/mlflow.db",
    }


@pytest.mark.parametrize(
    ("said", "told"),
    [("http://mlflow:5000", "http://mlflow:5000"), ("sqlite:///runs.db", "sqlite:///{}/runs.db")],
)
def test_workers_are_told_where_runs_are_kept(started, monkeypatch, tmp_path, said, told):
    """In a trial's own folder a relative path would be another database."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", said)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with connect():
        ((asked,),) = started
    assert asked["runtime_env"]["env_vars"]["MLFLOW_TRACKING_URI"] == told.format(tmp_path)


def test_credentials_reach_workers_here_by_the_environment_alone(started, monkeypatch):
    """Ray logs runtime environments."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:hunter2@db/mlflow")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with connect():
        ((asked,),) = started
        assert os.environ["MLFLOW_TRACKING_URI"] == "postgresql://me:hunter2@db/mlflow"
    assert "hunter2" not in str(asked)


@pytest.mark.parametrize(
    "error",
    [
        OSError("AF_UNIX path length cannot exceed 107 bytes"),
        RuntimeError("it ended"),
        Exception("The current node timed out during startup."),
    ],
)
def test_a_ray_that_cannot_be_started_here_is_one_line_too(started, monkeypatch, error):
    def refuse(**rest):
        raise error

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UserError, match=rf"cannot be started here \({error}.*RAY_TMPDIR"), connect():
        pass


def test_a_mistake_of_ours_is_no_refusal(started, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", lambda: None)
    with pytest.raises(TypeError), connect():
        pass


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("http://10.0.0.1:8265", "is for ray job submit"),
        ("127.0.0.1:9", "refused"),
        ("no-such-host.invalid:6379", "unset it"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_at_once_in_one_line(started, monkeypatch, address, advice):
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(UserError, match=advice) as caught, connect():
        pass
    assert started == [] and time.monotonic() - began < 30  # Ray itself tries for minutes
    assert address in str(caught.value) and "\n" not in str(caught.value)


def test_what_ray_says_against_a_connection_is_one_line_too(started, port, monkeypatch):
    def refuse(*address, **rest):
        raise RuntimeError("\nInvalid token.\nA page of advice")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(UserError, match=r"\(Invalid token\.\); does it ask for a token"), connect():
        pass


def test_in_a_job_the_cluster_is_the_job_s_own(started, monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with connect():
        assert started == [({"log_to_driver": False},)]


@pytest.mark.ray
def test_ray_says_nothing_when_it_starts(tmp_path):
    """What its core prints goes past Python, hence another process, which is copied as the command line's is."""
    working = """
import os, sys
import psutil
from rayreid.execution.standby import StandBy, stand_by

def work():
    return "timm" in sys.modules, psutil.Process(os.getppid()).cmdline()

def fail():
    raise ValueError("it failed")

copy = None
try:
    stand_by()
except StandBy as raised:
    copy = raised
if copy is not None:
    copy.serve()
import ray
from rayreid.execution.connection import connect
from rayreid.execution.ray_internals import gpus_here

with connect():
    copied = ray.get(ray.remote(work).remote()) == (True, psutil.Process().cmdline())
    print(copied == (gpus_here() == 0))
    try:
        ray.get(ray.remote(fail).remote())
    except ValueError as error:
        print("StandBy" in str(error))
"""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("RAY_ADDRESS", "RAY_BACKEND_LOG_LEVEL", "PWD", "SHLVL")  # the last ones as in a container
    }
    environment["RAYREID_ROOT"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", working], capture_output=True, text=True, env=environment, timeout=300)
    assert (done.stdout, done.stderr) == ("True\nFalse\n", "")
