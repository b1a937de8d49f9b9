"""Starting Ray's worker processes before an actor asks for them, with what it will import.

A process that starts when its actor is created costs seconds, one after the other: Python, Ray, then torch and timm. A
started process that waits for an actor reserves no CPU and no GPU, and ends with the command at the latest.

That is an internal call of Ray; where it fails, processes start when they are needed.
"""

import contextlib
import importlib
import logging
import os
from collections.abc import Mapping, Sequence

from rayreid.execution.ray_internals import START_HOOK, start_processes

ALLOWED = "RAYREID_PRESTART"
"""In the environment of the job where processes may be started ahead: on a cluster that was started for it alone."""
_MODULES = "RAYREID_PRELOAD"
_KEEP_SECONDS = 60


def importing(modules: Sequence[str]) -> dict[str, str]:
    """Return the environment variables with which a process imports modules as it starts; none where not allowed."""
    if not allowed():
        return {}
    return {_MODULES: ",".join(modules), START_HOOK: f"{__name__}.{preload.__name__}"}


def allowed() -> bool:
    """Return whether this job may start processes ahead."""
    import ray

    return ray.is_initialized() and ALLOWED in ray.get_runtime_context().runtime_env.get("env_vars", {})


def preload() -> None:
    """Import what `importing` named; called by Ray in a process that has just started."""
    for module in os.environ[_MODULES].split(","):
        with contextlib.suppress(Exception):  # it is raised where the module is needed, and can be told from there
            importlib.import_module(module)


def processes(environment: Mapping[str, str], count: int) -> None:
    """Have processes started for actors that are about to be created; return without waiting for them.

    Args:
        environment: The environment variables that those actors are given beside this process's own runtime
            environment. Ray gives an actor a process of exactly its environment.
        count: How many processes.
    """
    if not allowed():
        return
    try:
        start_processes(environment, count, _KEEP_SECONDS)
    except Exception as error:  # an internal call: whatever has become of it, nothing but time is lost
        logging.getLogger("rayreid").debug("processes could not be started ahead: %s", error)
