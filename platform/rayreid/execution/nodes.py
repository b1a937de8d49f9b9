"""Questions to the nodes of the cluster: a function that runs on each of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rayreid.errors import cause_of, one_line
from rayreid.execution.ray_internals import HEAD_RESOURCE


@dataclass(frozen=True)
class Answer:
    """One node's answer to a question.

    Attributes:
        node: Name of the node: its address, followed by " (head)" for the head node.
        resources: Resources that Ray counts on the node.
        value: Value that the question returned; None if it failed.
        error: Reason of the failure, in one line; "" if the question returned.
    """

    node: str
    resources: dict[str, float]
    value: Any
    error: str = ""


def ask_every_node(question: Callable[[], Any], seconds: float = 120.0) -> list[Answer]:
    """Run a function in a separate process on every living node, whatever else runs there, and return the answers.

    The process reserves no CPU and no GPU, and sees all GPUs of its node.

    Args:
        question: Function to run; the function and its result must be picklable.
        seconds: Time limit; a node that has not answered by then counts as failed.
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
            except Exception as caught:  # any error is that node's answer
                error = one_line(cause_of(caught), "last", limit=300)
        answers.append(Answer(_name(node), node["Resources"], value, error))
    return answers


def alone() -> bool:
    """Return whether the cluster's only living node is the one on which this process runs."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]] == [here]


def _name(node: dict[str, Any]) -> str:
    head = " (head)" if HEAD_RESOURCE in node["Resources"] else ""
    return f"{node['NodeManagerAddress']}{head}"
