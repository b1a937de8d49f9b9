from collections import Counter

import numpy as np
import pytest

from rayreid.data.sampling.balanced import BalancedPlan
from rayreid.errors import UserError

# Three identities of very different size: 0 seen by cameras 0 (20 images) and 1 (2), 1 by camera 2, 2 by nobody known.
PIDS = np.array([0] * 22 + [1] * 6 + [2] * 2)
CAMIDS = np.array([0] * 20 + [1] * 2 + [2] * 6 + [-1] * 2)
ROWS = np.arange(30) + 500


def drawn(plan, epoch=0):
    return np.concatenate([plan.batch(epoch, step) for step in range(plan.steps_per_epoch)]) - 500


def test_no_identity_and_no_camera_of_one_is_rarer_than_another():
    plan = BalancedPlan(ROWS, PIDS, CAMIDS, batch=6, seed=0)
    assert (plan.steps_per_epoch, plan.size) == (5, 6)
    for epoch in range(3):
        seen = drawn(plan, epoch)
        assert Counter(PIDS[seen].tolist()) == {0: 10, 1: 10, 2: 10}
        assert Counter(CAMIDS[seen[PIDS[seen] == 0]].tolist()) == {0: 5, 1: 5}
        assert all(len(set(PIDS[turn].tolist())) == 3 for turn in seen.reshape(-1, 3))  # each before any comes again


def test_images_of_a_camera_come_in_turn():
    seen = Counter(drawn(BalancedPlan(ROWS, PIDS, CAMIDS, batch=6, seed=0)).tolist())
    assert sorted(seen[row] for row in (20, 21)) == [2, 3]
    assert sorted(seen[row] for row in range(22, 28)) == [1, 1, 2, 2, 2, 2]
    assert [seen[row] for row in (28, 29)] == [5, 5]  # of unknown cameras: each a camera of its own
    assert {seen[row] for row in range(20)} == {0, 1}


def test_a_plan_is_a_function_of_seed_epoch_and_step_dealt_out_to_workers():
    plan = BalancedPlan(ROWS, PIDS, CAMIDS, batch=6, seed=1)
    later = plan.batch(3, 2)
    plan.batch(0, 0)
    np.testing.assert_array_equal(plan.batch(3, 2), later)
    np.testing.assert_array_equal(BalancedPlan(ROWS, PIDS, CAMIDS, 6, 1).batch(3, 2), later)
    np.testing.assert_array_equal(np.concatenate([plan.batch(3, 2, rank, 3) for rank in range(3)]), later)
    for other in (plan.batch(4, 2), plan.batch(3, 1), BalancedPlan(ROWS, PIDS, CAMIDS, 6, 2).batch(3, 2)):
        assert not np.array_equal(other, later)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(UserError, match="30 images are fewer than one batch of 31"):
        BalancedPlan(ROWS, PIDS, CAMIDS, 31, 0)
    with pytest.raises(UserError, match="cannot be dealt to 4 workers"):
        BalancedPlan(ROWS, PIDS, CAMIDS, 6, 0).batch(0, 0, 0, 4)
    with pytest.raises(ValueError, match="cameras"):
        BalancedPlan(ROWS, PIDS, CAMIDS[1:], 6, 0)
    with pytest.raises(ValueError, match="unknown identity"):
        BalancedPlan(ROWS, PIDS - 1, CAMIDS, 6, 0)
    with pytest.raises(IndexError):
        BalancedPlan(ROWS, PIDS, CAMIDS, 6, 0).batch(0, 5)
