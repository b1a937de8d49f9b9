"""Early start of Ray's worker processes, before actors need them, with the modules that the actors will import.

A process that starts when its actor is created takes seconds, first for Python, then for Ray, then for torch and timm.
A process that was started early reserves no CPU and no GPU while it waits for an actor, and ends with the command at
the latest.

The start uses an internal call of Ray; if it fails, processes start when they are needed.
"""

import contextlib
import importlib
import logging
import os
from collections.abc import Mapping, Sequence

from rayreid.execution.ray_internals import START_HOOK, start_processes

ALLOWED = "RAYREID_PRESTART"
"""Environment variable of a job that may start processes early: one whose cluster was started for it alone."""
_MODULES = "RAYREID_PRELOAD"
_KEEP_SECONDS = 60


def importing(modules: Sequence[str]) -> dict[str, str]:
    """Return the environment variables that make a process import modules as it starts; none if this is not allowed."""
    if not allowed():
        return {}
    return {_MODULES: ",".join(modules), START_HOOK: f"{__name__}.{preload.__name__}"}


def allowed() -> bool:
    """Return whether this job may start processes early."""
    import ray

    return ray.is_initialized() and ALLOWED in ray.get_runtime_context().runtime_env.get("env_vars", {})


def preload() -> None:
    """Import the modules that `importing` named; Ray calls this in a process that has just started."""
    for module in os.environ[_MODULES].split(","):
        with contextlib.suppress(Exception):  # the error comes again when the module is needed, and is reported there
            importlib.import_module(module)


def processes(environment: Mapping[str, str], count: int) -> None:
    """Start processes for actors that are about to be created, and return without waiting for them.

    Args:
        environment: Environment variables that those actors get in addition to this process's own runtime
            environment. Ray gives an actor only a process with exactly the actor's environment.
        count: Number of processes.
    """
    if not allowed():
        return
    try:
        start_processes(environment, count, _KEEP_SECONDS)
    except Exception as error:  # an internal call may change in any way; if it fails, only time is lost
        logging.getLogger("rayreid").debug("processes could not be started ahead: %s", error)
