"""The removal of a training's placement group when the training's controller has died.

Ray keeps the group, and with it the CPUs and GPUs, until the whole job ends: for a sweep, until its last trial. Ray
Train therefore starts an actor, which asks a dashboard whether the controller is alive. That is the dashboard of
`RAY_ADDRESS`, or else of the Ray that was last started on the machine: another cluster, where the controller is not
known and so taken for dead, or one that ended long ago, for which the end of a training waits 12 seconds. The actor
here asks the cluster that it belongs to. Its module imports little: the process of each training's actor does so anew.
"""

import logging
import time
from typing import Any

from rayreid.execution.ray_internals import actor_is_dead

_SECONDS = 1.0
"""Time between two looks at the controller."""


class GroupCleaner:
    """An actor that outlives the controller of a training, to remove its placement group."""

    _group: Any = None

    def register_placement_group(self, group: Any) -> None:
        """Take note of the group to remove; it replaces the one before it, whose workers are gone.

        Ray Train calls it when the workers have started. Of a controller that dies earlier, the group stays.
        """
        self._group = group

    def watch(self, controller: str) -> None:
        """Wait until the controller with this id has died, remove its group, and end this actor."""
        import ray

        try:
            while not self._dead(controller):
                time.sleep(_SECONDS)
            if self._group is not None:
                ray.util.remove_placement_group(self._group)
        finally:
            ray.actor.exit_actor()

    @staticmethod
    def _dead(controller: str) -> bool:
        try:
            return actor_is_dead(controller)
        except Exception as error:  # the control service may be restarting
            logging.getLogger("rayreid").debug("whether a training's controller is alive is not known: %s", error)
            return False
