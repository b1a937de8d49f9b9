"""What training and scoring may use of the cluster that Ray sees."""

import time
from dataclasses import dataclass

from rayreid.config import Resources
from rayreid.errors import UserError

_POLL_SECONDS = 5.0


@dataclass(frozen=True)
class Share:
    """What one training stage takes: `workers` processes of `cpus` CPUs, each with a GPU or not."""

    workers: int
    cpus: int
    gpu: bool


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
