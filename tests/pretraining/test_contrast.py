"""InfoNCE and the queue against published numbers and loops over pairs."""

import math

import pytest
import torch
from torch import nn

from rayreid.models.backbones import build_backbone
from rayreid.pretraining.contrast import Queue, contrast_batch, contrast_queue, feature_std
from rayreid.pretraining.moby import MoBY
from rayreid.pretraining.mocov3 import MoCoV3
from rayreid.pretraining.momentum import Rates
from rayreid.training.schedules import Constant

RATES = Rates("adamw", Constant(1e-3), 0.1, Constant(0.99))
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


class Slice(nn.Module):
    """In place of an encoder: features and projections are columns of the 'image', given by the file."""

    def __init__(self, columns: slice):
        super().__init__()
        self.columns = columns

    def forward(self, view):
        return view[:, self.columns], view[:, self.columns]


def stubbed(method, width: int):
    """The method with encoders that pass on the first (trained) and last (momentum) `width` columns."""
    method.base, method.momentum = Slice(slice(0, width)), Slice(slice(width, None))
    method.predictor = nn.Identity()
    return method


def tiny():
    return build_backbone("vit_tiny", img_size=(16, 16), depth=1, embed_dim=12, num_heads=1)


def views(case, names: tuple[str, str, str, str], *index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries (2B, D) and the 'images' (2B, 2D) that the stubs take apart, for queries and keys of two views."""
    q1, q2, k1, k2 = (torch.from_numpy(case[name][index] if index else case[name]) for name in names)
    queries = torch.cat([q1, q2]).requires_grad_()
    return queries, torch.cat([queries, torch.cat([k1, k2])], dim=1)


def test_moco_v3_s_loss_is_the_published_one(golden):
    case = golden("mocov3_loss.npz")
    width = case["q1"].shape[1]
    method = stubbed(MoCoV3(tiny(), tiny(), RATES, temperature=case.meta["temperature"]), width)
    queries, batch = views(case, ("q1", "q2", "k1", "k2"))
    loss = method.losses([batch])["loss"]
    loss.backward()
    assert loss.item() == pytest.approx(float(case["loss"]), rel=1e-5)
    for gradient, name in zip(queries.grad.chunk(2), ("grad_q1", "grad_q2"), strict=True):
        torch.testing.assert_close(gradient, torch.from_numpy(case[name]), **TOLERANCE)


def test_moby_s_losses_and_queues_are_the_published_ones(golden):
    case = golden("moby_loss.npz")
    width = case["pred1"].shape[2]
    method = MoBY(tiny(), tiny(), RATES, out_dim=width, temperature=case.meta["temperature"], queue=case.meta["queue"])
    stubbed(method, width)
    method.queue1.keys.copy_(torch.from_numpy(case["queue1_before"]).T)
    method.queue2.keys.copy_(torch.from_numpy(case["queue2_before"]).T)
    assert len(case["loss"]) * case["key1"].shape[1] > case.meta["queue"], "they wrap around"
    for call, expected in enumerate(case["loss"]):
        queries, batch = views(case, ("pred1", "pred2", "key1", "key2"), call)
        loss = method.losses([batch])["loss"]
        loss.backward()
        assert loss.item() == pytest.approx(float(expected), rel=1e-5)
        for gradient, name in zip(queries.grad.chunk(2), ("grad1", "grad2"), strict=True):
            torch.testing.assert_close(gradient, torch.from_numpy(case[name][call]), **TOLERANCE)
        method.queue1.advance()
        method.queue2.advance()
        for queue, name in ((method.queue1, "queue1_after"), (method.queue2, "queue2_after")):
            torch.testing.assert_close(queue.keys.T.contiguous(), torch.from_numpy(case[name][call]), **TOLERANCE)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


def naive(queries, keys, negatives_of, temperature) -> tuple[float, float]:
    """Loss and accuracy by a loop over pairs."""
    losses, right = [], 0
    for i, (query, key) in enumerate(zip(queries, keys, strict=True)):
        own = cosine(query, key)
        others = [cosine(query, other) for other in negatives_of(i)]
        total = sum(math.exp(value / temperature) for value in [own, *others])
        losses.append(-math.log(math.exp(own / temperature) / total))
        right += own >= max(others)
    return sum(losses) / len(losses), right / len(losses)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_a_contrast_in_the_batch_is_the_sum_over_pairs(temperature):
    torch.manual_seed(0)
    keys = torch.randn(7, 5, dtype=torch.float64)
    queries = keys + torch.randn(7, 5, dtype=torch.float64)
    found = contrast_batch(queries, keys, temperature)
    loss, accuracy = naive(queries, keys, lambda i: [k for j, k in enumerate(keys) if j != i], temperature)
    assert 0 < accuracy < 1
    assert (found.loss.item(), found.accuracy.item()) == pytest.approx((loss, accuracy))


@pytest.mark.parametrize("temperature", [0.07, 0.2])
def test_a_contrast_with_a_queue_is_the_sum_over_pairs(temperature):
    torch.manual_seed(1)
    queue = Queue(9, 5).double()
    queries, keys = torch.randn(2, 6, 5, dtype=torch.float64)
    found = contrast_queue(queries, keys, queue, temperature)
    loss, accuracy = naive(queries, keys, lambda i: queue.keys, temperature)
    assert (found.loss.item(), found.accuracy.item()) == pytest.approx((loss, accuracy))


def test_no_gradient_flows_to_keys_or_queue():
    queue = Queue(4, 3)
    queries, keys = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    for loss in (contrast_batch(queries, keys, 0.2).loss, contrast_queue(queries, keys, queue, 0.2).loss):
        queries.grad = None
        loss.backward()
        assert queries.grad.abs().max() > 0
        assert keys.grad is None and not queue.keys.requires_grad


def test_under_autocast_cosines_stay_precise():
    queries, keys = torch.randn(2, 64, 32)
    precise = contrast_batch(queries, keys, 0.2).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert contrast_batch(queries, keys, 0.2).loss.item() == pytest.approx(precise.item(), rel=1e-6)


@pytest.mark.parametrize("size", [3, 4, 5, 12])
def test_a_queue_gives_up_the_oldest_keys_first_and_wraps_around(size):
    """Against a list: with sizes that divide the length, that do not, and the length itself."""
    torch.manual_seed(0)
    queue = Queue(12, 4)
    held = list(queue.keys.clone())
    for _ in range(7):
        new = torch.randn(size, 4)
        queue.add(new)
        queue.advance()
        held = held[size:] + [key / key.norm() for key in new]
        start = int(queue.position)
        oldest_first = torch.cat([queue.keys[start:], queue.keys[:start]])
        torch.testing.assert_close(oldest_first, torch.stack(held))


def test_a_queue_starts_with_unit_keys_and_moves_only_with_advance():
    queue = Queue(6, 3)
    before = queue.keys.clone()
    torch.testing.assert_close(before.norm(dim=1), torch.ones(6))
    queue.add(torch.ones(1, 3))
    queue.add(-torch.ones(1, 3))
    assert torch.equal(queue.keys, before)
    queue.advance()
    assert torch.equal(queue.keys[2:], before[2:])
    torch.testing.assert_close(queue.keys[0], -queue.keys[1])
    queue.advance()
    assert int(queue.position) == 2


def test_more_keys_than_a_queue_holds_are_refused():
    queue = Queue(3, 2)
    queue.add(torch.ones(4, 2))
    with pytest.raises(ValueError, match="4 keys"):
        queue.advance()


def test_the_spread_of_features_is_0_where_all_are_alike_and_1_where_they_point_everywhere():
    torch.manual_seed(0)
    assert feature_std(torch.ones(8, 4) * torch.arange(1, 9)[:, None]) == pytest.approx(0, abs=1e-6)
    assert feature_std(torch.randn(4096, 16)) == pytest.approx(1, abs=0.01)
