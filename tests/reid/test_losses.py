"""Batch-hard triplet loss against the published values and its definition."""

import numpy as np
import pytest
import torch

from rayreid.reid.losses import euclidean_distances, hardest_distances, triplet_loss


@pytest.fixture
def case(golden):
    data = golden("triplet.npz")
    return data, torch.from_numpy(data["x"]).requires_grad_(), torch.from_numpy(data["y"])


def test_soft_margin_and_gradient_match_published(case):
    data, x, labels = case
    loss = triplet_loss(x, labels)
    loss.backward()
    assert loss.item() == pytest.approx(float(data["soft_margin_loss"]), abs=1e-5)
    np.testing.assert_allclose(x.grad, data["soft_margin_grad"], atol=1e-5)


def test_margin_matches_published(case):
    data, x, labels = case
    assert triplet_loss(x, labels, margin=0.3).item() == pytest.approx(float(data["margin_0_3_loss"]), abs=1e-5)


def test_gradient_with_a_margin_pulls_and_pushes_along_unit_vectors(case):
    """The parity file has no gradient for it: d|a − b| / da = (a − b) / |a − b|, per costly triplet."""
    data, x, labels = case
    triplet_loss(x, labels, margin=0.3).backward()
    points, names = data["x"].astype(float), data["y"]
    vectors = points[:, None] - points[None]
    dense = np.linalg.norm(vectors, axis=2)
    same = names[:, None] == names[None]
    pairs = np.where(same, dense, -1).argmax(1), np.where(same, np.inf, dense).argmin(1)
    expected = np.zeros_like(points)
    costly = data["hardest_positive"] - data["hardest_negative"] + 0.3 > 0
    assert costly.any()
    for anchor in np.flatnonzero(costly):
        for other, sign in ((pairs[0][anchor], 1), (pairs[1][anchor], -1)):
            pull = sign * vectors[anchor, other] / dense[anchor, other] / len(points)
            expected[anchor] += pull
            expected[other] -= pull
    np.testing.assert_allclose(x.grad, expected, atol=1e-5)


def test_hardest_distances_match_published(case):
    data, x, labels = case
    positive, negative = hardest_distances(x.detach(), labels)
    np.testing.assert_allclose(positive, data["hardest_positive"], atol=1e-5)
    np.testing.assert_allclose(negative, data["hardest_negative"], atol=1e-5)


def test_hardest_distances_by_definition_with_uneven_identities():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(9, 5)), np.array([0, 0, 0, 1, 1, 2, 2, 2, 3])
    dense = np.linalg.norm(x[:, None] - x[None], axis=2)
    same = labels[:, None] == labels[None]
    positive, negative = hardest_distances(torch.from_numpy(x), torch.from_numpy(labels))
    np.testing.assert_allclose(positive, np.where(same, dense, -1).max(1), atol=2e-6)
    np.testing.assert_allclose(negative, np.where(same, 99, dense).min(1), atol=1e-12)


def test_identical_points_have_a_finite_gradient():
    x = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    loss = triplet_loss(x, torch.tensor([0, 0, 1, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(np.log(2), abs=1e-9)
    assert torch.isfinite(x.grad).all()
    assert euclidean_distances(x, x).min() == 1e-6


def test_a_batch_of_one_identity_costs_nothing():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for margin in (None, 0.3):
        loss = triplet_loss(x, torch.zeros(4, dtype=torch.long), margin)
        (grad,) = torch.autograd.grad(loss, x)
        assert loss.item() == 0
        assert not grad.any()


def test_far_apart_points_do_not_overflow():
    x = torch.tensor([[0.0], [1e4], [1.0], [2.0]])
    assert torch.isfinite(triplet_loss(x, torch.tensor([0, 0, 1, 1])))


def test_autocast_leaves_the_distances_in_single_precision(case):
    data, x, labels = case
    with torch.autocast("cpu", torch.bfloat16):
        loss = triplet_loss(x, labels)
    assert loss.item() == pytest.approx(float(data["soft_margin_loss"]), abs=1e-5)
    assert triplet_loss(x.bfloat16(), labels).dtype == torch.float32
