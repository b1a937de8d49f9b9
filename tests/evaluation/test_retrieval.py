"""Retrieval metrics against the published values and a naive dense version of the protocol."""

import numpy as np
import pytest
import torch

from rayreid.errors import UserError
from rayreid.evaluation import ranking
from rayreid.evaluation.metrics import METRICS
from rayreid.evaluation.retrieval import evaluate_retrieval, top_k


def naive(qf, gf, qp, gp, qc, gc, max_rank=50):
    """The protocol with a dense matrix and a stable full sort: float64, one query after the other."""
    qf, gf = (f.astype(np.float64) / np.linalg.norm(f, axis=1, keepdims=True) for f in (qf, gf))
    precisions, penalties, firsts = [], [], []
    for i in range(len(qf)):
        valid = (gp != -1) & ~((gp == qp[i]) & (gc == qc[i]) & (gc != -1))
        order = np.argsort(-(gf @ qf[i])[valid], kind="stable")
        hits = np.flatnonzero((gp[valid] == qp[i])[order]) + 1
        if qp[i] == -1 or not len(hits):
            precisions.append(np.nan), penalties.append(np.nan), firsts.append(0)
            continue
        precisions.append(np.mean([(hits <= r).sum() / r for r in hits]))
        penalties.append(len(hits) / hits[-1])
        firsts.append(hits[0])
    firsts = np.array(firsts)
    cmc = [(firsts[firsts > 0] <= k).mean() for k in range(1, max_rank + 1)]
    return np.array(precisions), np.array(penalties), firsts, np.array(cmc)


def random_case(seed=0, queries=40, gallery=600, ids=12, dim=8, ties=False, noise=2.0):
    """Features, pids and camids of both sides, junk, unknown cameras, distractors and lonely queries included."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(ids + 2, dim))

    def side(n, low, high):
        pids = rng.integers(low, high, n)
        if ties:  # four entries of ±1/2: every product is exact, so that equal similarities are equal in floating point
            features = np.zeros((n, dim), np.float32)
            for row in features:
                row[rng.choice(dim, 4, replace=False)] = rng.choice([-0.5, 0.5], 4)
        else:
            features = (centres[pids] + noise * rng.normal(size=(n, dim))).astype(np.float32)
        return features, pids, rng.integers(-1, 4, n)

    qf, qp, qc = side(queries, -1, ids + 1)  # identity `ids` is not in the gallery
    gf, gp, gc = side(gallery, -1, ids)
    return qf, gf, qp, gp, qc, gc


def test_matches_published(golden):
    data = golden("evaluate.npz")
    sides = ("features", "pids", "cams")
    case = [data[f"{side}_{what}"] for what in sides for side in ("query", "gallery")]
    report = evaluate_retrieval(*case, max_rank=len(data["cmc"]))
    assert report.mAP == pytest.approx(float(data["mAP"]), abs=1e-6)
    np.testing.assert_allclose(report.cmc, data["cmc"], atol=1e-6)
    assert report.junk_gallery == (data["gallery_pids"] == -1).sum()


@pytest.mark.parametrize("noise", [0.3, 2.0])  # few rivals to a match, and many
@pytest.mark.parametrize("ties", [False, True])
def test_matches_naive(ties, noise):
    case = random_case(ties=ties, noise=noise)
    report = evaluate_retrieval(*case)
    precision, penalty, first, cmc = naive(*case)
    np.testing.assert_allclose(report.average_precision, precision, rtol=1e-12)
    np.testing.assert_allclose(report.inverse_negative_penalty, penalty, rtol=1e-12)
    np.testing.assert_array_equal(report.first_match, first)
    np.testing.assert_allclose(report.cmc, cmc, rtol=1e-12)
    assert report.mAP == pytest.approx(np.nanmean(precision), rel=1e-12)
    assert report.mINP == pytest.approx(np.nanmean(penalty), rel=1e-12)


def test_case_really_has_ties_junk_and_lonely_queries():
    qf, gf, qp, gp, _, _ = random_case(ties=True)
    scores = qf @ gf.T
    assert all(len(np.unique(row)) < len(row) / 10 for row in scores)
    report = evaluate_retrieval(*random_case(ties=True))
    assert report.skipped == (qp == 12).sum() > 0
    assert report.junk_queries == (qp == -1).sum() > 0
    assert report.junk_gallery == (gp == -1).sum() > 0
    assert report.queries == len(qf) - report.skipped - report.junk_queries
    assert report.gallery == len(gf) - report.junk_gallery


def test_equal_similarities_rank_by_place_in_the_gallery():
    one = np.eye(1, 4, dtype=np.float32)
    gallery = np.repeat(one, 3, axis=0)
    for place in range(3):
        pids = np.array([7, 7, 7])
        pids[place] = 1
        report = evaluate_retrieval(one, gallery, [1], pids, [0], np.array([1, 1, 1]))
        assert report.first_match.tolist() == [place + 1]


def test_same_identity_in_the_same_camera_is_passed_over_but_not_when_the_camera_is_unknown():
    query = np.array([[1.0, 0.0]], np.float32)
    gallery = np.array([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5]], np.float32)
    known = evaluate_retrieval(query, gallery, [1], [1, 2, 1], [3], [3, 0, 0])
    assert (known.first_match[0], known.matches[0]) == (2, 1)
    unknown = evaluate_retrieval(query, gallery, [1], [1, 2, 1], [-1], [-1, 0, 0])
    assert (unknown.first_match[0], unknown.matches[0]) == (1, 2)
    assert unknown.average_precision[0] == pytest.approx((1 + 2 / 3) / 2)
    assert unknown.mINP == pytest.approx(2 / 3)


def test_metrics_by_hand():
    """True matches at ranks 1 and 4 for the first query, at rank 2 for the second, none for the third."""
    query = np.eye(3, 3, dtype=np.float32)
    gallery = np.array([[1, 0, 0], [0.9, 0.3, 0], [0.8, 0.5, 0], [0.2, 0.1, 0]], np.float32)
    report = evaluate_retrieval(query, gallery, [1, 2, 3], [1, 9, 1, 2], [0, 0, 0], [1, 1, 1, 1], max_rank=3)
    assert report.first_match.tolist() == [1, 2, 0]
    np.testing.assert_allclose(report.average_precision, [0.75, 0.5, np.nan])
    np.testing.assert_allclose(report.inverse_negative_penalty, [0.5, 0.5, np.nan])
    assert report.matches.tolist() == [2, 1, 0]
    assert (report.queries, report.skipped) == (2, 1)
    np.testing.assert_allclose(report.cmc, [0.5, 1, 1])
    assert report.metrics() == {"mAP": 0.625, "rank1": 0.5, "rank5": 1, "rank10": 1, "mINP": 0.5}
    assert all(type(value) is float for value in report.metrics().values())
    assert tuple(report.metrics()) == METRICS


@pytest.mark.parametrize("block", [1, 7, 16, 1000])
def test_block_size_changes_no_bit(block, monkeypatch):
    monkeypatch.setattr(ranking, "TILE", 16)
    case = random_case(queries=50, gallery=3000, dim=96)
    report, whole = evaluate_retrieval(*case, block=block), evaluate_retrieval(*case)
    np.testing.assert_array_equal(report.average_precision, whole.average_precision)
    assert report.metrics() == whole.metrics()
    some = top_k(case[0], case[1], 9, block=block)
    for part, full in zip(some, top_k(case[0], case[1], 9), strict=True):
        np.testing.assert_array_equal(part, full)
    alone = top_k(case[0][20:21], case[1], 9, block=block)  # nor do a query's neighbours
    np.testing.assert_array_equal(alone[0][0], some[0][20])


def test_never_holds_more_than_a_block_of_similarities(monkeypatch):
    monkeypatch.setattr(ranking, "TILE", 8)
    sizes = []

    def watched(query, gallery, block):
        for start, part in ranking.score_blocks(query, gallery, block):
            sizes.append(part.shape if part.base is None else part.base.shape)
            yield start, part

    case = random_case(queries=40)
    report = evaluate_retrieval(*case, block=8, scores=watched)
    assert sizes
    assert max(np.prod(size) for size in sizes) <= 8 * 600
    assert report.metrics() == evaluate_retrieval(*case, block=8).metrics()


@pytest.mark.parametrize("threads", [1, 2])
def test_number_of_threads_changes_no_bit(threads):
    case = random_case(queries=300, gallery=3000, dim=96)
    whole = evaluate_retrieval(*case)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        report = evaluate_retrieval(*case)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(report.average_precision, whole.average_precision)
    assert report.metrics() == whole.metrics()


def test_tensors_and_arrays_give_the_same():
    case = random_case()
    tensors = [torch.from_numpy(part) for part in case]
    assert evaluate_retrieval(*tensors).metrics() == evaluate_retrieval(*case).metrics()


def test_input_is_left_alone():
    case = random_case()
    before = [part.copy() for part in case]
    evaluate_retrieval(*case)
    top_k(case[0], case[1], 3, *case[2:])
    for part, original in zip(case, before, strict=True):
        np.testing.assert_array_equal(part, original)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_top_k_is_the_head_of_the_ranking(ties, masked):
    qf, gf, qp, gp, qc, gc = random_case(ties=ties)
    scores, rows = top_k(qf, gf, 15, *((qp, gp, qc, gc) if masked else ()))
    for i in range(len(qf)):
        exact = gf.astype(np.float64) @ qf[i] / np.linalg.norm(gf, axis=1) / np.linalg.norm(qf[i])
        if masked:
            exact[(gp == -1) | ((gp == qp[i]) & (gc == qc[i]) & (gc != -1))] = -np.inf
        expected = np.argsort(-exact, kind="stable")[:15]
        np.testing.assert_array_equal(rows[i], expected)
        np.testing.assert_allclose(scores[i], exact[expected], atol=1e-6)


def test_top_k_marks_missing_places():
    scores, rows = top_k(np.eye(1, 2), np.eye(2), 4, [1], [1, 2], [0], [0, 0])
    assert rows.tolist() == [[1, -1, -1, -1]]
    assert scores[0].tolist() == [0, -np.inf, -np.inf, -np.inf]


def broken(**changes):
    names = ("query_features", "gallery_features", "query_pids", "gallery_pids", "query_camids", "gallery_camids")
    case = dict(zip(names, random_case(queries=5, gallery=30), strict=True))
    return case | {name: change(case[name]) for name, change in changes.items()}


def with_nan(features):
    features[3, 2] = np.nan
    return features


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gallery_features": with_nan}, r"1 of 30 gallery features hold NaN.*row 3"),
        ({"query_features": lambda f: f * np.inf}, r"5 of 5 query features"),
        ({"query_pids": lambda p: p[:-1]}, r"query: 5 features but pids of shape \(4,\)"),
        ({"gallery_camids": lambda c: c[:-2]}, r"gallery: 30 features but camids of shape \(28,\)"),
        ({"query_features": lambda f: f[:, :5]}, r"5 dimensions, gallery features 8"),
        ({"query_features": lambda f: f[0]}, r"query features must be \(images, dimensions\)"),
        (
            {k: lambda v: v[:0] for k in ("gallery_features", "gallery_pids", "gallery_camids")},
            "the gallery is empty",
        ),
        ({k: lambda v: v[:0] for k in ("query_features", "query_pids", "query_camids")}, "the query is empty"),
        ({"gallery_pids": lambda p: p * 0 - 1}, "all its 30 images are junk"),
        ({"gallery_pids": lambda p: p + 100}, "none of the 5 queries has a true match"),
        ({"query_pids": lambda p: p * 0 - 1}, "none of the 5 queries has a true match"),
    ],
)
def test_bad_input_says_what_is_wrong(changes, words):
    with np.errstate(invalid="ignore"), pytest.raises(UserError, match=words):
        evaluate_retrieval(**broken(**changes))


def test_top_k_takes_all_labels_or_none():
    with pytest.raises(UserError, match="all of query_pids"):
        top_k(np.eye(2), np.eye(2), 1, [1, 2])


@pytest.mark.gpu
@pytest.mark.parametrize("queries", [1, 256, 300, 700])
def test_a_gpu_gives_the_same_report(queries):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((queries + 900, 32)).astype(np.float32)
    pids, camids = rng.integers(-1, 60, len(features)), rng.integers(0, 4, len(features))
    reports = [
        evaluate_retrieval(
            *(torch.from_numpy(part).to(device) for part in np.split(features, [queries])),
            *np.split(pids, [queries]),
            *np.split(camids, [queries]),
        )
        for device in ("cpu", "cuda")
    ]
    assert reports[1].metrics() == pytest.approx(reports[0].metrics(), abs=1e-6)
    np.testing.assert_array_equal(reports[1].first_match, reports[0].first_match)
