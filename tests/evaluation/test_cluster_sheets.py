import numpy as np
import pytest

from rayreid.evaluation.cluster_sheets import BORDER, cluster_sheets


def test_a_sheet_has_its_centre_border_scores_and_shares():
    clusters = np.array([1, 0, 1, 1, 0])
    cosines = np.array([0.2, 0.9, 0.8, 0.5, 0.7])
    scores = {"cfs": np.array([1.0, np.nan, 3.0, 2.0, np.nan]), "random": np.array([0.1, 0.2, 0.3, 0.4, 0.5])}
    kept = {"cfs": np.array([False, False, True, True, False]), "random": np.array([False, False, False, False, True])}
    first, second = cluster_sheets(clusters, cosines, scores, kept)
    assert (first.cluster, first.size, first.centre, first.border) == (0, 2, 1, [4])
    assert (second.cluster, second.size, second.centre, second.border) == (1, 3, 2, [0, 3])
    assert first.scores == [None, (0.2, pytest.approx(0.35), 0.5)] and first.kept == [0, 0.5]
    assert second.scores[0] == (1, 2, 3) and second.kept == [pytest.approx(2 / 3), 0]


def test_a_large_cluster_shows_its_farthest_images_and_one_image_has_no_border():
    alone = cluster_sheets(np.array([0] * 20 + [3]), np.linspace(1, 0, 21), {}, {})
    assert alone[0].centre == 0 and alone[0].border == list(range(19, 19 - BORDER, -1))
    assert (alone[1].cluster, alone[1].centre, alone[1].border) == (3, 20, [])


def test_scores_and_subsets_are_of_the_same_selections():
    with pytest.raises(ValueError, match="different selections"):
        cluster_sheets(np.zeros(1, int), np.zeros(1), {"cfs": np.zeros(1)}, {})
