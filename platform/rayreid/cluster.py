"""Connecting to Ray, and what a stage may use of it."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayreid.config import Resources
from rayreid.errors import UserError
from rayreid.paths import data_path, inside_job, output_root
from rayreid.tracking.store import tracking_uri

_PACKAGE = Path(__file__).parent
_POLL_SECONDS = 5.0

_QUIET = {
    "RAY_AUTH_MODE": "disabled",  # for clusters started here; otherwise it depends on what ran before on this machine
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "error",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


@dataclass(frozen=True)
class Share:
    """What one training stage takes: `workers` processes of `cpus` CPUs, each with a GPU or not."""

    workers: int
    cpus: int
    gpu: bool


@contextlib.contextmanager
def connect() -> Iterator[None]:
    """Be connected to Ray: to the job's own cluster, to `RAY_ADDRESS`, or to one started here and stopped after.

    The package reaches the workers of a submitted job through the job's runtime environment
    (`jobs/runtime_env.yaml`), those of `RAY_ADDRESS` through `py_modules`. Ray gives workers other current folders
    than this process's; so the places of outputs, data and runs are told to them, as absolute paths.

    Raises:
        UserError: there is no such cluster, or it refuses this process; or none can be started here.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    logging.getLogger("ray").setLevel(logging.WARNING)
    if inside_job():
        ray.init(log_to_driver=False)
    elif address and address != "local":
        _attach(address)
    else:
        _start()
    try:
        yield
    finally:
        ray.shutdown()


def _start() -> None:
    import ray

    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    path = os.pathsep.join(filter(None, [str(_PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=True,
            logging_level=logging.WARNING,
            runtime_env={"env_vars": {"PYTHONPATH": path, **_places()}},
        )
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"Ray cannot be started here ({_reason(error)}); it needs a folder for its sockets and logs, with a short "
            "path and room on its disk: RAY_TMPDIR, by default /tmp"
        ) from None


def _reason(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _attach(address: str) -> None:
    import ray

    if address.startswith("http"):
        raise UserError(
            f"RAY_ADDRESS={address} is for ray job submit; a run from here needs the head's own port, as in "
            "RAY_ADDRESS=10.0.0.1:6379, or none to start Ray on this machine"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdigit():  # Ray itself tries for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"Ray at RAY_ADDRESS={address} does not answer ({error}); unset it to start Ray here") from None
    try:
        ray.init(address, runtime_env={"py_modules": [str(_PACKAGE)], "env_vars": _places()}, log_to_driver=False)
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(
            f"Ray at RAY_ADDRESS={address} cannot be used ({_reason(error)}); does it ask for a token "
            "(RAY_AUTH_MODE=token, RAY_AUTH_TOKEN or ~/.ray/auth_token), or run another version? "
            "Unset RAY_ADDRESS to start Ray here"
        ) from None


def _places() -> dict[str, str]:
    root = output_root()
    return {
        "RAYREID_ROOT": str(root),
        "RAYREID_DATA": str(data_path("")),
        "MLFLOW_TRACKING_URI": tracking_uri(root),
    }


def training_share(resources: Resources) -> Share:
    """Resolve `auto`: one worker per GPU that Ray sees; without one, a single worker with all CPUs of a node.

    One CPU worker with n threads computes what n workers would, without their traffic. CPUs are those of the nodes
    that workers can run on: of GPU nodes where there are GPUs. With `gpu: true` and a number of workers these may be
    more than there are GPUs: a cluster that adds nodes is asked for them.

    Raises:
        UserError: the cluster cannot hold the workers that the configuration asks for.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes)) if resources.gpu is not False else 0
    if resources.gpu is True and not gpus:
        if resources.workers == "auto":
            raise UserError(
                "resources.gpu is true, but Ray sees no GPU yet: say with resources.workers how many to start"
            )
        return Share(resources.workers, 1 if resources.cpus_per_worker == "auto" else resources.cpus_per_worker, True)
    fitting = [node for node in nodes if node.get("GPU", 0) >= 1] if gpus else nodes
    workers = resources.workers if resources.workers != "auto" else max(gpus, 1)
    if gpus and workers > gpus and resources.gpu is not True:
        raise UserError(
            f"resources.workers is {workers}, but the cluster has {gpus} GPUs; lower it, or say resources.gpu=true "
            "where the cluster adds nodes"
        )
    if resources.cpus_per_worker != "auto":
        return Share(workers, resources.cpus_per_worker, gpus > 0)
    if gpus:
        return Share(workers, max(1, min(int(node["CPU"] // node["GPU"]) for node in fitting)), True)
    cpus = [int(node.get("CPU", 0)) for node in fitting]
    each = next((n for n in range(max(cpus), 0, -1) if sum(cpu // n for cpu in cpus) >= workers), None)
    if each is None:
        raise UserError(f"resources.workers is {workers}, but the cluster has {sum(cpus)} CPUs; lower it")
    return Share(workers, each, False)


def awaited_share(resources: Resources, seconds: float = 600.0) -> Share:
    """`training_share` in the middle of a command: a node that was there when it began, and is lost, is waited for.

    Raises:
        UserError: the cluster stayed too small for `seconds`.
    """
    until = time.monotonic() + seconds
    while True:
        try:
            return training_share(resources)
        except UserError:
            if time.monotonic() > until:
                raise
        time.sleep(_POLL_SECONDS)


def scoring_actors() -> Share:
    """Actors for inference: one per GPU, with its share of the node's CPUs to decode with; else one per CPU.

    A CPU actor computes with one thread, so that actors do not fight.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fitting = [node for node in nodes if node.get("GPU", 0) >= 1]
    if not fitting:
        return Share(max(1, int(sum(node.get("CPU", 0) for node in nodes))), 1, False)
    gpus = int(sum(node["GPU"] for node in fitting))
    return Share(gpus, max(1, min(int(node.get("CPU", 1) // node["GPU"]) for node in fitting)), True)


@dataclass(frozen=True)
class Answer:
    """What came of asking one node.

    Attributes:
        node: its name: the address, and whether it is the head.
        resources: what Ray counts there.
        value: what the question returned; None where it did not.
        error: why it did not, in one line; "" where it did.
    """

    node: str
    resources: dict[str, float]
    value: Any
    error: str = ""


def ask_every_node(question: Callable[[], Any], seconds: float = 120.0) -> list[Answer]:
    """Run a function in a process of its own on every living node, whatever else runs there; none is waited for long.

    It asks for no CPU and no GPU, and sees all GPUs of its node.

    Args:
        question: what to run; it and its result can be pickled.
        seconds: after which a node that has not answered is given up.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def asked() -> Any:
        return question()

    nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=_name)
    task = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(asked)
    refs = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in nodes
    ]
    done, late = ray.wait(refs, num_returns=len(refs), timeout=seconds)
    for ref in late:
        ray.cancel(ref, force=True)
    answers = []
    for node, ref in zip(nodes, refs, strict=True):
        value, error = None, f"no answer within {seconds:.0f} s"
        if ref in done:
            try:
                value, error = ray.get(ref), ""
            except Exception as caught:  # whatever it is, it is that node's answer
                cause = getattr(caught, "cause", None) or caught
                error = (str(cause).strip() or type(cause).__name__).splitlines()[-1][:300]
        answers.append(Answer(_name(node), node["Resources"], value, error))
    return answers


def alone() -> bool:
    """Whether the only node is the one on which this process runs."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]] == [here]


def _name(node: dict[str, Any]) -> str:
    head = " (head)" if "node:__internal_head__" in node["Resources"] else ""
    return f"{node['NodeManagerAddress']}{head}"
