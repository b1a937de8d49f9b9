"""The parts of Ray that this package uses although Ray does not promise to keep them.

They are the reason for Ray's upper bound in `pyproject.toml`. Before you raise it, check each of them against the new
version. Two more are names of environment variables, which no type checker sees: `RAY_JOB_CONFIG_JSON_ENV_VAR`, by
which `rayreid.paths` recognises a submitted job, and the settings that keep Ray quiet, in
`rayreid.execution.connection` and `rayreid.sweeps.ray_tune`.
"""

import json
from collections.abc import Mapping
from typing import Any

HEAD_RESOURCE = "node:__internal_head__"
"""The resource that only the head node has. Ray's public list of nodes does not say which node is the head."""

START_HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
"""The environment variable that names a function which a worker process calls as it starts. Ray's public setting
applies to a whole job; here only some of a job's processes call a function."""
KEPT_PROCESSES = {"idle_worker_killing_time_threshold_ms": 600_000}
"""Settings of a cluster whose idle worker processes stay for ten minutes. Ray's own second is shorter than a training,
after which the next small pass would start a process and import torch and timm again, for six seconds."""
_CALL_SECONDS = 10.0


class KnownController:
    """The part of a Ray trainer that keeps Python's Ctrl-C handler and remembers the actor that controls the workers.

    It precedes `TorchTrainer` among a class's bases, and replaces a private method of it. In that method Ray replaces
    Python's handler by its own, and no setting prevents this. Ray's handler ends the process with an uninformative
    status and, when the training is over, swallows Ctrl-C. The method is also the only one that receives the
    controller, which must be killed to end the workers.

    Attributes:
        controller: Handle of the controlling actor; None before the training starts.
    """

    controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        self.controller = controller


class WithoutRayData:
    """The part of a Ray trainer that starts no process for Ray Data, because no training here reads from Ray Data.

    It precedes `TorchTrainer` among a class's bases, and replaces a private method of it. No setting of Ray prevents
    that process, even for a trainer without datasets.
    """

    def _create_default_callbacks(self) -> list[Any]:
        from ray.train.v2._internal.callbacks.datasets import DatasetsCallback

        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if not isinstance(callback, DatasetsCallback)]


def controller_environment() -> dict[str, str]:
    """Return the environment variables that Ray Train gives to the controller of a training.

    The workers of the training get them, too, in addition to those of the run's configuration.
    """
    from ray.train.v2._internal.constants import get_env_vars_to_propagate

    return {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", **get_env_vars_to_propagate()}


def start_processes(environment: Mapping[str, str], count: int, keep_seconds: int) -> None:
    """Ask this node's manager for worker processes that wait for actors or tasks with a given environment.

    By itself, Ray starts processes early only for jobs without a runtime environment.

    Args:
        environment: Environment variables, in addition to those of this process's own runtime environment.
        count: Number of processes.
        keep_seconds: Minimum time for which they are kept waiting, in seconds.

    Raises:
        Exception: Any error of the call; no process was started then.
    """
    import grpc
    import ray
    from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc

    common: Any = common_pb2  # generated modules create their names at run time
    messages: Any = node_manager_pb2
    context = ray.get_runtime_context()
    own = context.runtime_env
    merged = {**own, "env_vars": {**own.get("env_vars", {}), **environment}}
    [node] = (node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    request = messages.PrestartWorkersRequest(
        language=common.PYTHON,
        job_id=bytes.fromhex(context.get_job_id()),
        keep_alive_duration_secs=keep_seconds,
        num_workers=count,
    )
    # Ray compares environments as text: its core writes one that is merged from a parent's and a child's like this.
    text = json.dumps(merged, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    request.runtime_env_info.serialized_runtime_env = text
    with grpc.insecure_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
        node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=_CALL_SECONDS)
