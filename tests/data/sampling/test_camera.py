from collections import Counter

import numpy as np
import pytest

from rayreid.data.sampling.camera import CameraPlan
from rayreid.errors import UserError


def labelled(seed=0, identities=20, cameras=4):
    rng = np.random.default_rng(seed)
    pids = rng.permutation(np.repeat(np.arange(identities) * 3, rng.integers(1, 25, identities)))
    return np.arange(len(pids)) + 500, pids, rng.integers(0, cameras, len(pids))


def draws(plan, epochs=1):
    """All draws of one identity, (n, K)."""
    batches = [plan.batch(epoch, step) for epoch in range(epochs) for step in range(plan.steps_per_epoch)]
    return np.concatenate(batches).reshape(-1, plan.instances)


def test_the_others_were_seen_by_other_cameras_than_the_first():
    rows, pids, camids = labelled()
    plan = CameraPlan(rows, pids, camids, identities=6, instances=4, seed=1)
    pid, camid = (dict(zip(rows.tolist(), values.tolist(), strict=True)) for values in (pids, camids))
    seen = Counter()
    for draw in draws(plan, epochs=5).tolist():
        assert len({pid[row] for row in draw}) == 1
        cameras = set(camids[pids == pid[draw[0]]].tolist())
        if len(cameras) > 1:
            assert all(camid[row] != camid[draw[0]] for row in draw[1:])
            seen["several cameras"] += 1
        elif (pids == pid[draw[0]]).sum() > 1:
            assert all(row != draw[0] for row in draw[1:])
    assert seen["several cameras"] > 50


def test_images_are_repeated_only_where_too_few_are_left():
    rows = np.arange(12)
    pids = np.array([0] * 6 + [1] * 5 + [2])
    camids = np.array([0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0])
    for draw in draws(CameraPlan(rows, pids, camids, identities=3, instances=4, seed=0, steps_per_epoch=50)):
        rest = draw[1:]
        if draw[0] == 11:
            assert (rest == 11).all()
        elif camids[draw[0]] == 0:
            assert len(set(rest.tolist())) == 3  # four or more images at the other camera
        else:
            assert set(rest.tolist()) == {0 if draw[0] < 6 else 6}  # the only one at the other camera


def test_an_unknown_camera_differs_from_every_other():
    rows, pids, camids = np.arange(8), np.repeat([0, 1], 4), np.full(8, -1)
    for draw in draws(CameraPlan(rows, pids, camids, identities=2, instances=4, seed=0, steps_per_epoch=20)):
        assert len(set(draw[1:].tolist())) == 3


def test_every_identity_comes_before_any_comes_again():
    rows, pids, camids = labelled(identities=21)
    plan = CameraPlan(rows, pids, camids, identities=7, instances=2, seed=0, steps_per_epoch=6)
    pid = dict(zip(rows.tolist(), pids.tolist(), strict=True))
    seen = [pid[row] for row in draws(plan)[:, 0].tolist()]
    assert len(set(seen[:21])) == len(set(seen[21:])) == 21
    assert seen[:21] != seen[21:]


def test_a_plan_is_a_function_of_seed_epoch_and_step_dealt_out_to_workers():
    rows, pids, camids = labelled()
    plan = CameraPlan(rows, pids, camids, identities=8, instances=4, seed=1)
    assert plan.steps_per_epoch == len(rows) // 32
    later = plan.batch(3, 2)
    plan.batch(0, 0)
    np.testing.assert_array_equal(plan.batch(3, 2), later)
    np.testing.assert_array_equal(CameraPlan(rows, pids, camids, 8, 4, 1).batch(3, 2), later)
    np.testing.assert_array_equal(np.concatenate([plan.batch(3, 2, rank, 4) for rank in range(4)]), later)
    for other in (plan.batch(4, 2), plan.batch(3, 1), CameraPlan(rows, pids, camids, 8, 4, 2).batch(3, 2)):
        assert not np.array_equal(other, later)


def test_what_cannot_be_drawn_is_refused():
    rows, pids, camids = labelled()
    with pytest.raises(UserError, match="20 identities are fewer than a batch's 21"):
        CameraPlan(rows, pids, camids, identities=21)
    with pytest.raises(UserError, match="cannot be dealt to 3 workers"):
        CameraPlan(rows, pids, camids, identities=8).batch(0, 0, 0, 3)
    with pytest.raises(ValueError, match="cameras"):
        CameraPlan(rows, pids, camids[:-1])
    with pytest.raises(ValueError, match="unknown identity"):
        CameraPlan([1, 2], [0, -1], [0, 0])
    with pytest.raises(IndexError):
        CameraPlan(rows, pids, camids, identities=8).batch(0, 10_000)


def test_images_of_unknown_camera_go_with_one_another_as_with_those_of_a_known_one():
    pids, camids = np.repeat([0, 1], 4), np.tile([-1, -1, -1, 3], 2)
    plan = CameraPlan(np.arange(8), pids, camids, identities=2, instances=4)
    for epoch in range(6):
        np.testing.assert_array_equal(np.sort(plan.batch(epoch, 0)), np.arange(8))
