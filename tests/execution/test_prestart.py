"""Processes that are started before an actor asks for them."""

import os
import sys
import time

import psutil
import pytest
import ray

from rayreid.execution import prestart
from rayreid.execution.connection import connect

MODULE = "colorsys"  # which nothing else imports


@pytest.fixture
def connected(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with connect():
        yield


def started(environment):
    """An actor with these environment variables; its process need not have this module."""
    module = MODULE

    class Started:
        def __init__(self):
            self.imported = module in sys.modules

        def tell(self):
            """When the process began, one of its variables, what it had imported when it was given the actor."""
            return psutil.Process().create_time(), os.environ["OF_ITS_OWN"], self.imported

    return ray.remote(num_cpus=1, runtime_env={"env_vars": environment})(Started).remote()


def waiting() -> int:
    """Count the processes that wait for work."""
    children = psutil.Process().children(recursive=True)
    return sum(process.name().startswith("ray::IDLE") for process in children if process.is_running())


@pytest.mark.ray
def test_an_actor_is_given_the_process_that_was_started_for_it_and_reserves_nothing_before(connected):
    environment = {"OF_ITS_OWN": "a", **prestart.importing([MODULE, "no_such_module"])}
    before, until = waiting(), time.monotonic() + 60
    prestart.processes(environment, 1)
    while waiting() == before:
        assert time.monotonic() < until, "no process was started"
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"]
    asked = time.time()
    actor = started(environment)
    began, value, imported = ray.get(actor.tell.remote())
    assert began < asked and value == "a" and imported


@pytest.mark.ray
def test_where_ray_cannot_be_asked_the_actor_starts_all_the_same(connected, monkeypatch):
    def refuse(*args, **kwargs):
        raise AttributeError("PrestartWorkers")

    monkeypatch.setattr("ray.core.generated.node_manager_pb2_grpc.NodeManagerServiceStub", refuse)
    prestart.processes({"OF_ITS_OWN": "b"}, 1)
    actor = started({"OF_ITS_OWN": "b"})
    assert ray.get(actor.tell.remote())[1] == "b"


def test_a_cluster_that_was_not_started_for_this_job_is_asked_for_nothing(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr("ray.get_runtime_context", lambda: type("Context", (), {"runtime_env": {"env_vars": {}}}))
    monkeypatch.setattr(prestart, "start_processes", lambda *args: pytest.fail("it was asked"))
    prestart.processes({"OF_ITS_OWN": "c"}, 1)
    assert prestart.importing([MODULE]) == {}


def test_without_ray_nothing_is_started(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert not prestart.allowed()
