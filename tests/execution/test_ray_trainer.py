"""Ray Train's trainer as this package uses it: what it does with Ctrl-C, and which processes it starts."""

import os
import signal
import threading
import time

import pytest
import ray
import ray.train
import ray.train.torch
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.util import placement_group_table

from rayreid.execution import prestart, ray_trainer
from rayreid.execution.ray_trainer import Trainer


@pytest.fixture
def alone(monkeypatch):
    """A cluster of one node, with Ray Train's own settings; no process is started ahead."""
    for name in (*ray_trainer._POLLING, *ray_trainer._NO_DRAINING):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(ray_trainer, "alone", lambda: True)
    monkeypatch.setattr(prestart, "processes", lambda environment, count: None)


def test_an_interrupted_training_has_its_workers_ended(monkeypatch, alone):
    killed = []

    def interrupted(trainer):
        trainer._register_sigint_handler("the controller")
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    assert callable(ray.train.torch.TorchTrainer._register_sigint_handler)  # Ray's, which ours takes the place of
    monkeypatch.setattr(ray.train.torch.TorchTrainer, "fit", interrupted)
    monkeypatch.setattr(ray, "kill", killed.append)
    with pytest.raises(KeyboardInterrupt):
        Trainer(lambda: None).fit()
    assert killed == ["the controller"]
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize(("nodes", "watching"), [(True, "0"), (False, None)])
def test_nodes_that_could_be_drained_are_watched_and_the_only_one_is_not(monkeypatch, alone, nodes, watching):
    monkeypatch.setattr(ray_trainer, "alone", lambda: nodes)
    monkeypatch.setattr(ray.train.torch.TorchTrainer, "fit", lambda trainer: None)
    Trainer(lambda: None).fit()
    assert os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") == watching


def test_no_process_is_started_for_ray_data_the_cleaner_is_our_own_and_nothing_else_is_left_out():
    trainer = Trainer(lambda: None)
    rays = [type(callback) for callback in ray.train.torch.TorchTrainer._create_default_callbacks(trainer)]
    ours = [type(callback) for callback in trainer._create_default_callbacks()]
    assert {DatasetsCallback, PlacementGroupCleanerCallback} <= set(rays)
    left = [kind for kind in rays if kind not in (DatasetsCallback, PlacementGroupCleanerCallback)]
    assert ours[:-1] == left and ours[-1].__bases__ == (PlacementGroupCleanerCallback,)


@pytest.mark.ray
def test_processes_are_started_ahead_in_the_environments_that_ray_train_gives_its_own(monkeypatch, tmp_path):
    """Ray Train names these in private places; a process of any other environment would be of no use to it."""
    from rayreid.execution.connection import connect

    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    asked = []
    monkeypatch.setattr(prestart, "processes", lambda environment, count: asked.append((dict(environment), count)))

    def worker():
        parent = ray.get_runtime_context().runtime_env["env_vars"]
        (tmp_path / "worker").write_text(repr(sorted(parent.items())))

    with connect():
        own = ray.get_runtime_context().runtime_env["env_vars"]
        Trainer(
            worker,
            scaling_config=ray.train.ScalingConfig(num_workers=1),
            run_config=ray.train.RunConfig(
                storage_path=str(tmp_path / "ray"), worker_runtime_env={"env_vars": {"OF_ITS_OWN": "a"}}
            ),
        ).fit()
    (workers, one), (helpers, _) = asked
    assert one == 1 and workers == {**helpers, "OF_ITS_OWN": "a"}
    assert (tmp_path / "worker").read_text() == repr(sorted({**own, **workers}.items()))


def until(true, seconds: float = 120.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.mark.ray
def test_a_controller_that_dies_leaves_no_placement_group(monkeypatch, tmp_path):
    """Ray would keep it until the job ends, and with it the CPUs and GPUs."""
    from rayreid.execution.connection import connect

    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def worker():
        (tmp_path / "runs").touch()
        time.sleep(600)

    def kill():
        until((tmp_path / "runs").exists)
        ray.kill(trainer.controller)

    def states() -> set[str]:
        return {group["state"] for group in placement_group_table().values()}

    with connect():
        scaling = ray.train.ScalingConfig(num_workers=1)
        trainer = Trainer(worker, scaling_config=scaling, run_config=ray.train.RunConfig(storage_path=str(tmp_path)))
        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(ray.exceptions.RayActorError):
            trainer.fit()
        killer.join()
        until(lambda: states() == {"REMOVED"})
