"""Ray Train's trainer as this package uses it: it can be interrupted, and starts with few processes and short waits."""

import os
from typing import Any

import ray
import ray.train.torch

from rayreid.execution import prestart
from rayreid.execution.group_cleaner import GroupCleaner
from rayreid.execution.nodes import alone
from rayreid.execution.private_ray import meeting_place
from rayreid.execution.ray_internals import (
    KnownController,
    OwnHelpers,
    controller_environment,
    meeting_in_a_file,
)

_POLLING = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
"""Ray Train notices the end or the failure of a training when it polls the workers, by default every two seconds."""
_NO_DRAINING = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
"""The preemption watcher is a process that waits for nodes to be drained; the only node of a cluster never is."""
_HELPERS = 3
"""Processes of a training besides its workers: the controller, its barrier, and the cleaner of its placement group."""


class Trainer(KnownController, OwnHelpers, ray.train.torch.TorchTrainer):
    """Ray's trainer, which can be interrupted like any other call and starts faster.

    - On Ctrl-C, `fit` raises KeyboardInterrupt and ends the workers.
    - On a cluster that `connect` started, the processes of a training start in parallel, and each worker imports the
      modules that it will need. By itself, Ray starts each process only when the previous one requests it.
    - On such a cluster, no worker listens on another interface than the loopback.
    """

    cleaner = GroupCleaner

    def __init__(self, *arguments: Any, **settings: Any):
        place = meeting_place()
        if place:
            settings["torch_config"] = meeting_in_a_file(place)
        super().__init__(*arguments, **settings)

    def fit(self) -> ray.train.Result:
        """Run the training and return its result.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        for name, value in {**_POLLING, **(_NO_DRAINING if alone() else {})}.items():
            os.environ.setdefault(name, value)
        self._prestart()
        try:
            return super().fit()
        except KeyboardInterrupt:
            if self.controller is not None:
                ray.kill(self.controller)
            raise

    def _prestart(self) -> None:
        run: Any = self.run_config
        scaling: Any = self.scaling_config
        environment, own = controller_environment(), run.worker_runtime_env.get("env_vars", {})
        prestart.processes({**environment, **own}, scaling.num_workers)
        prestart.processes(environment, _HELPERS)
