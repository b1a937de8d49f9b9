import numpy as np
import pytest
import torch

from rayreid.devices import tf32
from rayreid.selection import whole_directions as module
from rayreid.selection.whole_directions import nearest, whole_directions

CPU = torch.device("cpu")


def units(count: int, dimensions: int, seed: int) -> np.ndarray:
    points = np.random.default_rng(seed).standard_normal((count, dimensions))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize("dimensions", [3, 384, 1280])
def test_cosines_are_those_of_float64_but_for_the_rounding(dimensions):
    features = units(50, dimensions, 0)
    exact = features.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    points = whole_directions(features, CPU)
    np.testing.assert_allclose(points.cosines(points), exact @ exact.T, atol=5e-4)
    close = (exact + 0.001 * exact[::-1]).astype(np.float16)
    beside = close / np.linalg.norm(close.astype(np.float64), axis=1, keepdims=True)
    found = points.cosines(whole_directions(close, CPU)).diagonal()
    np.testing.assert_allclose(found, (exact * beside).sum(axis=1), atol=2e-5)


def test_cosines_do_not_depend_on_what_is_multiplied_together():
    first, second = whole_directions(units(300, 384, 0), CPU), whole_directions(units(70, 384, 1), CPU)
    together = first.cosines(second)
    sums = first.whole.long() @ second.whole.long().T
    assert torch.equal((first.whole @ second.whole.T).long(), sums)
    for row, column in ((0, 0), (17, 3), (299, 69)):
        assert first[row : row + 1].cosines(second[column : column + 1]).item() == together[row, column].item()
    backwards = first[torch.arange(299, -1, -1)].cosines(second)
    assert torch.equal(backwards.flip(0), together)


def test_a_mean_is_subtracted_and_zeros_are_similar_to_nothing():
    mean = np.array([0.5, 0.0])
    points = whole_directions(np.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.0]], np.float16), CPU, mean)
    assert points.whole.tolist() == [[4000, 0], [0, 4000], [0, 0]]
    assert points.cosines(points).diagonal().tolist() == pytest.approx([1, 1, 0])


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_the_nearest_is_that_of_all_pairs_and_ties_go_to_the_first(monkeypatch, block):
    monkeypatch.setattr(module, "_ROWS", block)
    monkeypatch.setattr(module, "_COLUMNS", block)
    points, others = whole_directions(units(40, 12, 0), CPU), whole_directions(np.tile(units(23, 12, 1), (2, 1)), CPU)
    cosines, rows = nearest(points, others)
    everything = points.cosines(others)
    assert torch.equal(cosines, everything.max(dim=1).values)
    np.testing.assert_array_equal(rows, everything.numpy().argmax(axis=1))
    assert rows.max() < 23


def test_nothing_is_near_where_there_is_nothing():
    points = whole_directions(units(3, 4, 0), CPU)
    assert nearest(points, points[:0])[0].tolist() == [-np.inf] * 3


def test_products_are_exact_where_tf32_is_allowed(monkeypatch):
    asked: list[bool] = []
    monkeypatch.setattr(module, "tf32", lambda allowed: asked.append(allowed) or tf32(allowed))
    points = whole_directions(units(3, 4, 0), CPU)
    points.cosines(points)
    assert asked == [False]
