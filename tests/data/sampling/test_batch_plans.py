import math
from collections import Counter

import numpy as np
import pytest

from rayreid.data.sampling.batch_plans import IdentityPlan, ShufflePlan
from rayreid.errors import UserError

ROWS = np.arange(1000, 1103)


def labelled(seed=0, identities=40):
    """Rows and pids: identities with 1 to 30 images, in mixed order."""
    rng = np.random.default_rng(seed)
    pids = rng.permutation(np.repeat(np.arange(identities) * 3, rng.integers(1, 31, identities)))
    return np.arange(len(pids)) + 500, pids


def epoch_of(plan, epoch):
    return np.stack([plan.batch(epoch, step) for step in range(plan.steps_per_epoch)])


def test_shuffle_plan_sees_every_row_at_most_once_an_epoch():
    plan = ShufflePlan(ROWS, 10, seed=0)
    assert plan.steps_per_epoch == 10
    seen = epoch_of(plan, 0)
    assert seen.shape == (10, 10)
    assert len(np.unique(seen)) == 100
    assert np.isin(seen, ROWS).all()
    assert (np.sort(seen.ravel()) != seen.ravel()).mean() > 0.8


@pytest.mark.parametrize("world", [2, 4])
def test_shares_put_together_are_the_batch_of_one_worker(world):
    rows, pids = labelled()
    for plan in (ShufflePlan(ROWS, 12, seed=0), IdentityPlan(rows, pids, 8, 4, seed=0)):
        for epoch, step in ((0, 0), (1, 3), (0, 2)):
            shares = [plan.batch(epoch, step, rank, world) for rank in range(world)]
            np.testing.assert_array_equal(np.concatenate(shares), plan.batch(epoch, step))
            assert len({len(share) for share in shares}) == 1


def test_plans_are_functions_of_seed_epoch_and_step():
    rows, pids = labelled()
    makers = (lambda seed: ShufflePlan(ROWS, 10, seed), lambda seed: IdentityPlan(rows, pids, 8, 4, seed))
    for make in makers:
        plan = make(1)
        later = plan.batch(5, 4)
        plan.batch(2, 0)
        np.testing.assert_array_equal(plan.batch(5, 4), later)
        np.testing.assert_array_equal(make(1).batch(5, 4), later)
        for other in (make(2).batch(5, 4), plan.batch(6, 4), plan.batch(5, 3)):
            assert not np.array_equal(other, later)


def test_identity_batches_hold_k_images_of_p_identities():
    rows, pids = labelled()
    pid_of = dict(zip(rows.tolist(), pids.tolist(), strict=True))
    plan = IdentityPlan(rows, pids, identities=8, instances=4, seed=3)
    for epoch in range(3):
        for batch in epoch_of(plan, epoch):
            groups = [[pid_of[row] for row in group] for group in batch.reshape(8, 4).tolist()]
            assert all(len(set(group)) == 1 for group in groups)
            assert len({group[0] for group in groups}) == 8
    for rank in range(4):
        share = [pid_of[row] for row in plan.batch(0, 0, rank, 4).tolist()]
        assert sorted(Counter(share).values()) == [4, 4]


def test_first_epoch_is_the_fields_draw():
    """As many chunks as an identity has images for; at the end fewer than P identities have chunks left."""
    rows, pids = labelled()
    sizes = Counter(pids.tolist())
    pid_of = dict(zip(rows.tolist(), pids.tolist(), strict=True))
    plan = IdentityPlan(rows, pids, identities=8, instances=4, seed=3)
    seen = epoch_of(plan, 0)
    chunks = Counter(pid_of[row] for row in seen[:, ::4].ravel().tolist())
    left = {pid: max(1, n // 4) - chunks[pid] for pid, n in sizes.items()}
    assert min(left.values()) >= 0
    assert sum(n > 0 for n in left.values()) < 8
    uses = Counter(seen.ravel().tolist())
    for row, count in uses.items():
        assert count == 1 or sizes[pid_of[row]] < 4
    small = next(pid for pid, n in sizes.items() if n < 4 and chunks[pid])
    assert chunks[small] == 1


def test_images_left_over_are_dropped_for_an_epoch_only():
    """Six images make one chunk of four; identities with fewer than four give one, with images repeated."""
    pids = np.repeat([0, 1, 2], [6, 6, 3])
    plan = IdentityPlan(np.arange(15), pids, identities=3, instances=4, seed=0)
    assert plan.steps_per_epoch == 1
    seen = Counter()
    for epoch in range(12):
        chunks = plan.batch(epoch, 0).reshape(3, 4)
        large = chunks[pids[chunks[:, 0]] < 2]
        assert all(len(set(chunk.tolist())) == 4 for chunk in large)
        (small,) = chunks[pids[chunks[:, 0]] == 2]
        assert len(set(small.tolist())) <= 3
        seen.update(chunks.ravel().tolist())
    assert set(seen) == set(range(15))


def test_an_identity_of_exactly_as_many_images_as_a_batch_takes_gives_each_once():
    plan = IdentityPlan(np.arange(24), np.repeat(np.arange(6), 4), identities=6, instances=4, seed=0)
    for epoch in range(3):
        np.testing.assert_array_equal(np.sort(plan.batch(epoch, 0)), np.arange(24))


def test_every_epoch_has_the_announced_length():
    rows, pids = labelled()
    plan = IdentityPlan(rows, pids, identities=8, instances=4, seed=3)
    own = [IdentityPlan(rows, pids, 8, 4, seed=seed).steps_per_epoch for seed in range(12)]
    assert len(set(own)) > 1  # draws do differ in length …
    total = sum(max(1, n // 4) for n in Counter(pids.tolist()).values())
    assert max(own) <= total // 8
    for epoch in range(12):  # … and every epoch is cut or continued
        assert plan._draw(epoch).shape == (plan.steps_per_epoch, 32)


def test_large_and_equal_identities_are_all_used():
    pids = np.repeat(np.arange(12), 8)
    plan = IdentityPlan(np.arange(96), pids, identities=12, instances=4, seed=0)
    assert plan.steps_per_epoch == 2
    np.testing.assert_array_equal(np.sort(epoch_of(plan, 1).ravel()), np.arange(96))


def test_faults_of_the_user():
    rows, pids = labelled()
    with pytest.raises(UserError, match="103 images are fewer"):
        ShufflePlan(ROWS, 104, seed=0)
    with pytest.raises(UserError, match="multiple of 3"):
        ShufflePlan(ROWS, 10, seed=0).batch(0, 0, 0, 3)
    with pytest.raises(UserError, match="40 identities are fewer"):
        IdentityPlan(rows, pids, identities=41)
    with pytest.raises(UserError, match="multiple of 3"):
        IdentityPlan(rows, pids, 16).batch(0, 0, 0, 3)
    with pytest.raises(ValueError, match="unknown identity"):
        IdentityPlan(rows, np.where(pids == 0, -1, pids))
    with pytest.raises(ValueError, match="rank 2"):
        ShufflePlan(ROWS, 10, seed=0).batch(0, 0, 2, 2)
    for plan in (ShufflePlan(ROWS, 10, seed=0), IdentityPlan(rows, pids, 8)):
        with pytest.raises(IndexError):
            plan.batch(0, plan.steps_per_epoch)


def test_steps_of_an_uneven_set():
    assert ShufflePlan(ROWS, 7, seed=0).steps_per_epoch == math.floor(103 / 7)
