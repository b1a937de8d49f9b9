"""Re-ranking against the published distances and a naive dense version."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import naive_neighbours as naive
from rayreid.errors import UserError
from rayreid.evaluation.rerank import Reranking
from rayreid.evaluation.retrieval import evaluate_retrieval


def unit(features):
    return F.normalize(torch.as_tensor(features), dim=1)


def distances(reranking, query, gallery, block=256):
    blocks = [(start, -scores) for start, scores in reranking(unit(query), unit(gallery), block)]
    assert [start for start, _ in blocks] == list(np.cumsum([0, *(len(part) for _, part in blocks[:-1])]))
    return np.concatenate([part for _, part in blocks])


@pytest.fixture
def published(golden):
    case, expected = golden("evaluate.npz"), golden("rerank.npz")
    meta = expected.meta
    return case, expected, Reranking(meta["k1"], meta["k2"], meta["lambda_value"])


def test_distances_match_published(published):
    case, expected, reranking = published
    gallery = case["gallery_features"][case["gallery_pids"] != -1]
    found = distances(reranking, case["query_features"], gallery)
    np.testing.assert_allclose(found, expected["rerank_distance"], atol=1e-4)


def test_metrics_match_published(published):
    case, expected, reranking = published
    sides = [case[f"{side}_{what}"] for what in ("features", "pids", "cams") for side in ("query", "gallery")]
    report = evaluate_retrieval(*sides, max_rank=len(expected["cmc"]), scores=reranking)
    assert report.mAP == pytest.approx(float(expected["mAP"]), abs=1e-4)
    np.testing.assert_allclose(report.cmc, expected["cmc"], atol=1 / report.queries + 1e-6)
    assert report.mAP > evaluate_retrieval(*sides).mAP + 0.001


@pytest.mark.parametrize("case", [naive.clustered, naive.tied])
@pytest.mark.parametrize(("queries", "gallery"), [(30, 120), (3, 5), (1, 1)])
def test_matches_naive(case, queries, gallery):
    for seed in range(3):
        features = case(seed, queries + gallery)
        features[-1] *= -1.5  # never all one point
        encoding = naive.encoding(features, 21, 11, 6, scaled=True)
        squared = 2 - 2 * naive.lists(features, 1)[1]
        squared /= squared.max(axis=1, keepdims=True)
        expected = 0.7 * naive.jaccard(encoding, encoding) + 0.3 * squared
        found = distances(Reranking(), features[:queries], features[queries:])
        np.testing.assert_allclose(found, expected[:queries, queries:], atol=1e-5)


def test_weight_one_is_the_squared_distance_and_changes_no_rank():
    features = naive.clustered(0, 80)
    rng = np.random.default_rng(0)
    pids, camids = rng.integers(0, 6, 80), rng.integers(0, 3, 80)
    sides = [part for values in (features, pids, camids) for part in (values[:20], values[20:])]
    plain, weighted = evaluate_retrieval(*sides), evaluate_retrieval(*sides, scores=Reranking(weight=1.0))
    assert plain.mAP == pytest.approx(weighted.mAP, abs=1e-6)


def test_block_size_changes_no_bit():
    features = naive.clustered(0, 700)
    whole = distances(Reranking(), features[:600], features[600:], block=2000)
    np.testing.assert_array_equal(distances(Reranking(), features[:600], features[600:], block=1), whole)


def test_one_point_over_and_over_has_finite_distances():
    found = distances(Reranking(), np.ones((3, 4), np.float32), np.ones((40, 4), np.float32))
    assert np.isfinite(found).all()


def test_numbers_out_of_range_are_refused():
    for wrong in ({"k1": 0}, {"k2": 0}, {"k1": 5, "k2": 6}, {"weight": -0.1}, {"weight": 1.1}, {"weight": np.nan}):
        with pytest.raises(UserError, match="1 <= k2 <= k1"):
            Reranking(**wrong)


@pytest.mark.gpu
def test_on_a_device_as_on_the_cpu():
    features = unit(naive.clustered(0, 300))
    here = np.concatenate([part.copy() for _, part in Reranking()(features[:50], features[50:])])
    there = np.concatenate([part.copy() for _, part in Reranking()(features[:50].cuda(), features[50:].cuda())])
    np.testing.assert_allclose(there, here, atol=1e-4)
