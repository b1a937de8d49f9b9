"""Pieces of work done by Ray tasks."""

import numpy as np
import pytest
import ray
import torch

from planted_features import in_parts, planted
from rayreid.execution.task_pieces import pieces_in_tasks
from rayreid.selection import leaders
from rayreid.selection.dedup import near_duplicates


@pytest.fixture
def two_cpus(no_shared_ray):
    ray.init(num_cpus=2, address="local", include_dashboard=False)
    yield
    ray.shutdown()


@pytest.mark.ray
def test_near_duplicates_are_those_of_one_process(two_cpus):
    """In tasks that a task starts which has all CPUs itself, as a strategy has."""
    pool = in_parts(planted(50, 6, 0.45))
    known = {"copies": np.arange(300), "sizes": np.full(300, 128), "similarity": 0.85, "clusters": 7}

    def spread():
        leaders._WORTH_A_PIECE = 10
        work = pieces_in_tasks()
        places = work.each(lambda piece: (piece, ray.get_runtime_context().get_task_id()), range(5))
        return work.at_once, places, near_duplicates(pool, torch.device("cpu"), 0, **known, work=work)

    at_once, places, (groups, facts) = ray.get(ray.remote(num_cpus=2)(spread).remote())
    assert at_once == 2 and [piece for piece, _ in places] == [0, 1, 2, 3, 4]
    assert len({task for _, task in places}) == 5
    expected, known_facts = near_duplicates(pool, torch.device("cpu"), 0, **known)
    np.testing.assert_array_equal(groups, expected)
    assert facts == known_facts
