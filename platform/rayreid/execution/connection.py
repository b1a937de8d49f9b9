"""Connection to Ray: to the cluster of a submitted job, to a named cluster, or to one that is started here."""

import contextlib
import logging
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from rayreid.errors import UserError, one_line
from rayreid.execution import fork_client, worker_setup
from rayreid.execution.machine import usable_cpus
from rayreid.execution.prestart import ALLOWED
from rayreid.execution.private_ray import PrivateRay, private
from rayreid.execution.ray_internals import NO_METRICS, PROCESSES, gpus_here, lean_node
from rayreid.execution.standby import appoint, can_fork, starts_own_ray
from rayreid.masking import holds_credentials
from rayreid.paths import cache_folder, data_path, inside_job, output_root
from rayreid.tracking.store import tracking_uri

_PACKAGE = Path(__file__).parents[1]

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}

_IMPORTED = (
    "ray._private.workers.default_worker",
    "ray.train.v2._internal.execution.controller",
    "rayreid.execution.trainer",
    "rayreid.stages.finetune",
    "rayreid.stages.pretrain",
)
"""Modules that bring nearly everything that a training or scoring process imports."""


@contextlib.contextmanager
def connect() -> Iterator[None]:
    """Connect to Ray within a `with` block.

    In a submitted job this is the job's own cluster, otherwise the one at `RAY_ADDRESS`, otherwise a cluster that is
    started here, serves this command alone (see `private_ray`), and is stopped afterwards.

    The workers of a submitted job receive the package through the job's runtime environment (`jobs/runtime_env.yaml`),
    those of `RAY_ADDRESS` through `py_modules`. Ray gives workers a different current folder from this process's, so
    environment variables pass the locations of outputs, data and runs to them as absolute paths.

    Raises:
        UserError: The cluster does not exist or refuses this process, or none can be started here.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    logging.getLogger("ray").setLevel(logging.WARNING)
    with contextlib.ExitStack() as stack:
        if inside_job():
            ray.init(log_to_driver=False)
        elif address and not starts_own_ray():
            _attach(address)
        else:
            _start(stack.enter_context(private()))
        stack.callback(ray.shutdown)
        yield


def _start(own: PrivateRay) -> None:
    import ray

    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    places = {**own.environment, **_without_credentials(_places())}
    path = os.pathsep.join(filter(None, [str(_PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    try:
        with lean_node(Path(worker_setup.__file__) if can_fork() else None):
            ray.init(
                address="local",
                num_cpus=usable_cpus(),
                _temp_dir=str(own.folder),
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=True,
                logging_level=logging.WARNING,
                _system_config={**PROCESSES, **NO_METRICS},
                runtime_env={"env_vars": {"PYTHONPATH": path, ALLOWED: "1", **places}, **_forked(own.private)},
            )
    except Exception as error:
        # Ray raises a bare Exception where one of its processes ends, or is slow, while it starts.
        if not isinstance(error, OSError | RuntimeError) and type(error) is not Exception:
            raise
        raise UserError(
            f"Ray cannot be started here ({one_line(error, limit=200)}); it needs a folder for its sockets and logs, "
            "with a short path and room on its disk: RAY_TMPDIR, by default /tmp"
        ) from None


def _forked(folder: Path) -> dict[str, str]:
    """Return the part of the runtime environment with which processes are forked; see `fork_server`.

    It is empty where the system has no means for it, and on a machine with GPUs. There each process starts by itself:
    CUDA cannot be used in a process that was forked after its first use, and no GPU was at hand to try that the modules
    leave it alone.

    Args:
        folder: A folder that only this user can enter, for the server's socket.
    """
    if not can_fork() or gpus_here():
        return {}
    place = folder / "fork"
    appoint(place, _IMPORTED)
    client = [sys.executable, "-I", "-S", fork_client.__file__, str(place), ",".join(_IMPORTED)]
    return {"py_executable": shlex.join(client)}


def _attach(address: str) -> None:
    import ray

    if address.startswith("http"):
        raise UserError(
            f"RAY_ADDRESS={address} is for ray job submit; a run from here needs the head's own port, as in "
            "RAY_ADDRESS=10.0.0.1:6379, or none to start Ray on this machine"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # Ray itself keeps trying for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"Ray at RAY_ADDRESS={address} does not answer ({error}); unset it to start Ray here") from None
    try:
        ray.init(address, runtime_env={"py_modules": [str(_PACKAGE)], "env_vars": _places()}, log_to_driver=False)
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(
            f"Ray at RAY_ADDRESS={address} cannot be used ({one_line(error, limit=200)}); does it ask for a token "
            "(RAY_AUTH_MODE=token, RAY_AUTH_TOKEN or ~/.ray/auth_token), or run another version? "
            "Unset RAY_ADDRESS to start Ray here"
        ) from None


def _without_credentials(places: dict[str, str]) -> dict[str, str]:
    """Return variables without those that hold credentials, which Ray would log.

    The processes of a Ray that is started here inherit these from this one's environment.
    """
    return {name: value for name, value in places.items() if not holds_credentials(value)}


def _places() -> dict[str, str]:
    root, cache = output_root(), cache_folder()
    return {
        **({"RAYREID_CACHE": str(cache)} if cache else {}),
        "RAYREID_ROOT": str(root),
        "RAYREID_DATA": str(data_path("")),
        "MLFLOW_TRACKING_URI": tracking_uri(root),
    }
