"""What scoring may use of a cluster; the cluster is only said to be there."""

import pytest

from rayreid.cluster import Share, scoring_actors

NO_ONE = {"memory": 1e9}
SMALL, LARGE = {"CPU": 2.0}, {"CPU": 3.0}
GPUS, FEW_CPUS = {"CPU": 16.0, "GPU": 4.0}, {"CPU": 2.0, "GPU": 4.0}


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([SMALL, LARGE, NO_ONE], Share(5, 1, False)),
        ([NO_ONE], Share(1, 1, False)),
        ([SMALL, GPUS], Share(4, 4, True)),
        ([GPUS, {"CPU": 8.0, "GPU": 1.0}], Share(5, 4, True)),
        ([GPUS, FEW_CPUS], Share(8, 1, True)),
    ],
)
def test_there_is_an_actor_per_gpu_or_else_one_thread_per_cpu(monkeypatch, nodes, expected):
    lost = {"Alive": False, "Resources": {"CPU": 100.0, "GPU": 100.0}}
    monkeypatch.setattr("ray.nodes", lambda: [lost, *({"Alive": True, "Resources": node} for node in nodes)])
    assert scoring_actors() == expected
