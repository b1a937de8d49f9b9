"""The parts of Ray that this package uses although Ray does not promise to keep them.

They are the reason for Ray's upper bound in `pyproject.toml`. Before you raise it, check each of them against the new
version. Two more are names of environment variables, which no type checker sees: `RAY_JOB_CONFIG_JSON_ENV_VAR`, by
which `rayreid.paths` recognises a submitted job, and the settings that keep Ray quiet, in
`rayreid.execution.connection` and `rayreid.sweeps.ray_tune`. `rayreid.execution.symmetric_run` replaces steps of one of
Ray's commands.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HEAD_RESOURCE = "node:__internal_head__"
"""The resource that only the head node has. Ray's public list of nodes does not say which node is the head."""

START_HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
"""The environment variable that names a function which a worker process calls as it starts. Ray's public setting
applies to a whole job; here only some of a job's processes call a function."""
MANAGER = "RAY_RAYLET_PID"
"""The environment variable in which Ray tells a worker process the id of its node manager's process. Ray's core reads
it, like `RAY_JOB_ID`, when it is imported and never again."""
PROCESSES = {"idle_worker_killing_time_threshold_ms": 600_000, "prestart_worker_first_driver": False}
"""Settings of a cluster's worker processes. Idle ones stay for ten minutes: Ray's own second is shorter than a
training, after which the next small pass would start processes again. None are started before they are asked for: those
would lack the runtime environment, so nothing here could use them."""
NO_METRICS = {"enable_metrics_collection": False}
"""Settings of a cluster whose metrics nobody collects: else each node serves them to all who ask, without a token."""
_NOBODY = b"127.0.0.1:9"
"""An address at which nothing answers: that of a service which discards all it gets, and which only root can offer."""
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


class OwnHelpers:
    """The part of a Ray trainer that starts other helping processes than Ray's.

    It precedes `TorchTrainer` among a class's bases, and replaces a private method of it. There is no process for Ray
    Data, because no training here reads from Ray Data; no setting of Ray prevents it, even for a trainer without
    datasets. The process that removes the placement group of a controller that died is `cleaner`.

    Attributes:
        cleaner: The class of that process; `rayreid.execution.group_cleaner` says why it is not Ray's.
    """

    cleaner: type

    def _create_default_callbacks(self) -> list[Any]:
        from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
        from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

        replaced = (DatasetsCallback, PlacementGroupCleanerCallback)
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [*(one for one in callbacks if not isinstance(one, replaced)), cleaner_callback(self.cleaner)]


def cleaner_callback(kind: type) -> Any:
    """Return Ray Train's hook that starts a cleaner of placement groups, but with a cleaner of another kind.

    The hook is called in the controller of a training. It ends the cleaner without waiting for it.
    """
    import ray
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    from rayreid.execution.resources import ANYWHERE

    class GroupCleanerCallback(PlacementGroupCleanerCallback):
        _cleaner: Any

        def after_controller_start(self, train_run_context: Any) -> None:
            self._controller_actor_id = ray.get_runtime_context().get_actor_id()
            actor: Any = ray.remote(num_cpus=0)(kind)
            at_the_head = {"resources": {HEAD_RESOURCE: 0.001}, "scheduling_strategy": ANYWHERE}
            self._cleaner = actor.options(max_concurrency=2, lifetime="detached", **at_the_head).remote()
            self._cleaner.watch.remote(self._controller_actor_id)

        def _stop_cleaner(self) -> None:
            cleaner, self._cleaner = self._cleaner, None
            if cleaner is not None:
                with contextlib.suppress(Exception):  # a training that ended well does not fail for its cleaner
                    ray.kill(cleaner)

    return GroupCleanerCallback()


def actor_is_dead(actor: str) -> bool:
    """Return whether the actor with this id has ended, as the control service of this process's cluster knows it."""
    from ray._private.state import actors

    return actors(actor).get("State", "DEAD") == "DEAD"


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Let a Ray that is started within a `with` block listen on the loopback address alone.

    Ray replaces a loopback address that it is given by one that other machines can reach, and with such an address most
    of its servers listen on all interfaces. It has a switch against this, meant for other operating systems than
    Linux, which it reads when it is imported.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def lean_node(worker_setup: Path | None) -> Iterator[None]:
    """Let a Ray that is started within a `with` block leave out the processes that nothing uses.

    These are a dashboard's server (with `include_dashboard=False` Ray starts it all the same, for statistics of usage),
    a monitor that asks a cloud for machines, and one that sends the workers' logs to this process. The agent of each
    node does without its web server. They took a third of the time in which Ray starts.

    Args:
        worker_setup: The file that Ray starts as Python for each worker; see `rayreid.execution.worker_setup`. None:
            Ray's own.
    """
    from ray._private import node, ray_constants, utils

    class LeanNode(node.Node):
        _ray_params: Any

        def start_api_server(self, **options: Any) -> None:
            self._webui_url = ""
            # Without an address, the agent asks for it each second for ever, and logs each time that there is none.
            self.get_gcs_client().internal_kv_put(
                ray_constants.DASHBOARD_ADDRESS.encode(), _NOBODY, True, ray_constants.KV_NAMESPACE_DASHBOARD
            )

        def start_monitor(self) -> None:
            pass

        def start_log_monitor(self) -> None:
            pass

        def start_raylet(self, *arguments: Any, **options: Any) -> None:
            if worker_setup is not None:
                self._ray_params.setup_worker_path = str(worker_setup)
            super().start_raylet(*arguments, **options)

    module: Any = node
    tools: Any = utils
    before = module.Node, tools.get_dashboard_dependency_error
    module.Node, tools.get_dashboard_dependency_error = LeanNode, lambda: ImportError("left out")
    try:
        yield
    finally:
        module.Node, tools.get_dashboard_dependency_error = before


def reread_authentication() -> None:
    """Let Ray read its mode of authentication and its token again; it reads either only once in a process."""
    from ray import _raylet

    core: Any = _raylet  # a compiled module, whose names no type checker sees
    core.Config.initialize("")
    core.AuthenticationTokenLoader.instance().reset_cache()


def meeting_in_a_file(folder: Path) -> Any:
    """Return a torch configuration with which the workers of a training find one another through a file.

    With Ray's own, the first worker runs a server for this, which torch binds to all interfaces and which asks nobody
    for a token.

    Args:
        folder: A folder that all workers see, and nobody else.
    """
    import ray
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend

    class FileBackend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(_set_torch_distributed_env_vars)
            place = folder / uuid.uuid4().hex  # after a failure the workers meet again, at a file of their own
            joined = [
                worker_group.execute_single_async(
                    rank,
                    _setup_torch_process_group,
                    backend=backend_config.backend,
                    world_rank=rank,
                    world_size=len(worker_group),
                    init_method=f"file://{place}",
                    timeout_s=backend_config.timeout_s,
                )
                for rank in range(len(worker_group))
            ]
            ray.get(joined)

    class FileConfig(TorchConfig):
        @property
        def backend_cls(self) -> type:
            return FileBackend

    return FileConfig()


def controller_environment() -> dict[str, str]:
    """Return the environment variables that Ray Train gives to the controller of a training.

    The workers of the training get them, too, in addition to those of the run's configuration.
    """
    from ray.train.v2._internal.constants import get_env_vars_to_propagate

    return {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0", **get_env_vars_to_propagate()}


@contextlib.contextmanager
def no_ids_drawn() -> Iterator[None]:
    """Keep Ray's generator of ids untouched within a `with` block that imports modules.

    Ray's core seeds it when it first draws, once for a process and those forked from it: they would all draw the same
    ids, of placement groups and objects. A class that is declared an actor draws one.
    """
    from ray import actor

    module: Any = actor
    ids = module.ActorClassID

    class Drawn:
        @staticmethod
        def from_random() -> Any:
            return ids(os.urandom(ids.size()))

    module.ActorClassID = Drawn
    try:
        yield
    finally:
        module.ActorClassID = ids


def gpus_here() -> int:
    """Return how many GPUs this machine has, as Ray counts them."""
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    return manager.get_current_node_num_accelerators() if manager else 0


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
    import ray
    from ray._private.grpc_utils import init_grpc_channel  # it sends the cluster's token
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
    with init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
        node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=_CALL_SECONDS)
