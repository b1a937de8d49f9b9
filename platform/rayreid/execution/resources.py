"""The shares of the cluster that training and scoring may use."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rayreid.config import Resources
from rayreid.errors import UserError

_POLL_SECONDS = 5.0

ANYWHERE: Final = "DEFAULT"
"""The scheduling strategy of tasks that a stage starts. Without it, a stage in a trial of Tune would start them within
the trial's placement group, which has no CPU for them."""


@dataclass(frozen=True)
class Share:
    """Resources of one stage: `workers` processes with `cpus` CPUs each, and with one GPU each if `gpu` is true."""

    workers: int
    cpus: int
    gpu: bool


def training_share(resources: Resources) -> Share:
    """Return the share of a training, with `auto` resolved.

    `auto` means one worker per GPU that Ray sees or, without GPUs, a single worker with all CPUs of a node. One CPU
    worker with n threads computes as much as n workers would, without their communication. Only the CPUs of nodes on
    which workers can run count: those of GPU nodes if there are GPUs. With `gpu: true` and an explicit number of
    workers, there may be more workers than GPUs: a cluster that adds nodes is asked for the missing ones.

    Raises:
        UserError: The cluster cannot hold the workers that the configuration asks for.
    """
    return share_on(resources, living_nodes())


def living_nodes() -> list[Mapping[str, float]]:
    """Return the resources of the cluster's living nodes, as Ray counts them."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def share_on(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> Share:
    """Return the share of a training on nodes with the given resources; see `training_share`.

    Raises:
        UserError: The nodes cannot hold the workers that the configuration asks for.
    """
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


def trainings_at_once(share: Share, nodes: Sequence[Mapping[str, float]]) -> int:
    """Return how many trainings of a share fit the nodes at the same time, counting only whole workers per node."""
    fitting = [
        int(min(node.get("CPU", 0) // share.cpus, node.get("GPU", 0) if share.gpu else node.get("CPU", 0)))
        for node in nodes
    ]
    return max(1, sum(fitting) // share.workers)


def awaited_share(resources: Resources, seconds: float = 600.0) -> Share:
    """Return `training_share`, after waiting for nodes that were lost since the command began.

    Args:
        resources: The resources that the configuration asks for.
        seconds: Maximum time to wait.

    Raises:
        UserError: The cluster is still too small after `seconds`.
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
    """Return the share of inference: one actor per GPU or, without GPUs, one per CPU.

    A GPU actor gets its share of the node's CPUs for decoding. A CPU actor computes with one thread, so that actors do
    not compete for CPUs.
    """
    return inference_share(living_nodes())


def inference_share(nodes: Sequence[Mapping[str, float]]) -> Share:
    """Return the share of inference on nodes with the given resources; see `scoring_actors`."""
    fitting = [node for node in nodes if node.get("GPU", 0) >= 1]
    if not fitting:
        return Share(max(1, int(sum(node.get("CPU", 0) for node in nodes))), 1, False)
    gpus = int(sum(node["GPU"] for node in fitting))
    return Share(gpus, max(1, min(int(node.get("CPU", 1) // node["GPU"]) for node in fitting)), True)
