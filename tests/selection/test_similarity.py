import numpy as np
import pytest
import torch

from planted_features import in_parts, planted, unit
from rayreid.selection import similarity, turns
from rayreid.selection.similarity import nearest, target_similarity
from rayreid.selection.strategies import random_priority
from rayreid.selection.whole_directions import whole_directions

CPU = torch.device("cpu")


def naive(features: np.ndarray, references: np.ndarray) -> np.ndarray:
    """All cosines (N, M) in float64."""
    a, b = (
        x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1)[:, None] for x in (features, references)
    )
    return a @ b.T


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_nearest_is_that_of_all_pairs(monkeypatch, block, dtype):
    monkeypatch.setattr(similarity, "_BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    features = (5 * torch.randn(40, 12, generator=generator)).to(dtype)
    references = torch.randn(23, 12, generator=generator).to(dtype)
    cosines, rows = nearest(features, references)
    expected = naive(features.numpy(), references.numpy())
    np.testing.assert_allclose(cosines, expected.max(axis=1), atol=1e-6)
    np.testing.assert_array_equal(rows, expected.argmax(axis=1))


@pytest.mark.parametrize("block", [2, 100])
def test_ties_go_to_the_first_and_what_is_no_number_stays_none(monkeypatch, block):
    monkeypatch.setattr(similarity, "_BLOCK", block)
    references = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, -1.0], [1.0, 0.0]])
    cosines, rows = nearest(torch.tensor([[3.0, 0.0], [float("nan"), 1.0], [-1.0, 0.0]]), references)
    assert rows[0] == 1 and rows[2] == 0
    assert cosines[0] == 1 and cosines[2] == 0 and cosines[1].isnan()


def turn_by_turn(cosines: np.ndarray, order: np.ndarray, listed: int) -> list[int]:
    """Rows of the pool in the order in which targets take them, and the rest by their greatest cosine."""
    taken: list[int] = []
    lists = {target: np.argsort(-cosines[:, target], kind="stable")[:listed].tolist() for target in order}
    while any(set(mine) - set(taken) for mine in lists.values()):
        for target in order:
            left = [row for row in lists[target] if row not in taken]
            taken += left[:1]
    rest = [row for row in np.argsort(-cosines.max(axis=1), kind="stable").tolist() if row not in taken]
    return taken + rest


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("entries", [1 << 24, 12 * 9, 1])
def test_each_target_image_takes_its_most_similar_image_in_turn(monkeypatch, entries, centre):
    monkeypatch.setattr(turns, "LISTED", entries)
    monkeypatch.setattr(turns, "_IMAGES", 7)
    monkeypatch.setattr(turns, "_TARGETS", 5)
    features, targets = planted(30, 3, 0.8), planted(12, 1, 0, seed=9)
    pool = in_parts(features, 4, undecodable=(17,), shuffled=True)
    priority, facts = target_similarity(pool, CPU, [in_parts(targets, 2)], "round_robin", centre)
    usable = np.delete(np.arange(90), 17)
    mean = features[usable].astype(np.float64).mean(axis=0) if centre else None
    cosines = whole_directions(targets, CPU, mean).cosines(whole_directions(features[usable], CPU, mean)).T.numpy()
    order = np.argsort([-random_priority([f"{row:04d}.jpg"], 0)[0] for row in range(12)])
    expected = turn_by_turn(cosines, order, max(1, min(90, entries // 12)))
    assert np.isnan(priority[17])
    assert np.argsort(-priority)[:89].tolist() == usable[expected].tolist()
    assert sorted(-priority[usable]) == list(range(89))
    assert facts["target_images"] == 12 and facts["by_turns"] <= min(89, 12 * facts["listed"])


def test_equal_images_take_turns_by_row():
    features = np.tile(unit(np.array([[1.0, 0.0], [0.6, 0.8]])), (4, 1))
    priority, facts = target_similarity(in_parts(features, 3), CPU, [in_parts(features[:1])], "round_robin")
    assert np.argsort(-priority).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert facts == {"target_images": 1, "listed": 8, "by_turns": 8}


def test_every_target_has_its_turn_where_one_would_win():
    crowd, few = planted(1, 60, 0.2, seed=0), planted(1, 4, 0.9, seed=1)
    pool = in_parts(np.concatenate([crowd, few]))
    targets = [in_parts(planted(1, 1, 0, seed=0)), in_parts(planted(1, 1, 0, seed=1))]
    nearest_first, _ = target_similarity(pool, CPU, targets)
    turn, _ = target_similarity(pool, CPU, targets, "round_robin")
    assert np.argsort(-nearest_first)[:4].max() < 60
    assert (np.argsort(-turn)[:4] >= 60).sum() == 2


@pytest.mark.parametrize("centre", [False, True])
def test_the_nearest_target_image_gives_the_priority(centre):
    features, targets = planted(30, 3, 0.8), planted(12, 1, 0, seed=9)
    pool = in_parts(features, 4, undecodable=(17,))
    priority, facts = target_similarity(pool, CPU, [in_parts(targets, undecodable=(3,))], centre=centre)
    usable = np.delete(np.arange(90), 17)
    mean = features[usable].astype(np.float64).mean(axis=0) if centre else 0
    expected = naive(features[usable] - mean, np.delete(targets, 3, axis=0) - mean).max(axis=1)
    np.testing.assert_allclose(priority[usable], expected, atol=1e-6)
    assert np.isnan(priority[17]) and facts == {"target_images": 11}
