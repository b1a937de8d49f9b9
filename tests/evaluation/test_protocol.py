"""Who can be found, from labels alone."""

import numpy as np
import pytest

from rayreid.errors import UserError
from rayreid.evaluation.protocol import check_findable, findable


def test_a_match_is_the_same_person_not_known_to_be_by_the_same_camera():
    queries, query_cameras = [1, 1, 2, 3, -1, 4, 5], [0, -1, 0, 0, 0, 0, 0]
    gallery, gallery_cameras = [1, 2, 2, -1, 4], [0, 0, 1, 1, -1]
    found = findable(queries, gallery, query_cameras, gallery_cameras)
    #      same camera, own camera unknown, another camera, absent, junk, its camera unknown, absent
    assert found.tolist() == [False, True, True, False, False, True, False]


def test_it_agrees_with_a_plain_loop():
    rng = np.random.default_rng(3)
    q, g, qc, gc = (rng.integers(-1, high, 60) for high in (6, 9, 3, 3))
    plain = [
        pid >= 0 and any(p == pid and (c != cam or cam < 0) for p, c in zip(g, gc, strict=True))
        for pid, cam in zip(q, qc, strict=True)
    ]
    assert findable(q, g, qc, gc).tolist() == plain
    assert 0 < sum(plain) < 60


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (([1, 2], [1, 2], [4, 4], [4, 4]), "by camera 4"),
        (([1, 2], [3, 4], [0, 1], [2, 3]), "none of the 2 queries has a true match"),
        (([-1], [-1], [0], [1]), "none of the 1 queries"),
    ],
)
def test_nobody_to_find_is_refused_with_the_reason(labels, words):
    with pytest.raises(UserError, match=words):
        check_findable(*labels)


def test_one_is_enough():
    check_findable([1, 2], [1, 3], [0, 0], [1, 1])
