"""The nodes of the cluster: asking each of them a question."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rayreid.errors import cause_of, one_line
from rayreid.execution.ray_internals import HEAD_RESOURCE


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
                error = one_line(cause_of(caught), "last", limit=300)
        answers.append(Answer(_name(node), node["Resources"], value, error))
    return answers


def alone() -> bool:
    """Whether the only node is the one on which this process runs."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]] == [here]


def _name(node: dict[str, Any]) -> str:
    head = " (head)" if HEAD_RESOURCE in node["Resources"] else ""
    return f"{node['NodeManagerAddress']}{head}"
