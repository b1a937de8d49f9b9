import pytest
import torch
from torch import nn

from rayreid.models.norms import IBN, SyncedBatchNorm, set_synchronised

CHANNELS = 6
SHARES = {0: slice(0, 5), 1: slice(5, 8)}  # workers' batches of different sizes


def batch(dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(8, CHANNELS, 5, 4, dtype=torch.float64, generator=generator) * 2 + 3
    grad = torch.randn(8, CHANNELS, 5, 4, dtype=torch.float64, generator=generator)
    return x.to(dtype), grad.to(dtype)


def layer(kind, dtype):
    torch.manual_seed(1)
    made = (IBN if kind == "ibn" else SyncedBatchNorm)(CHANNELS).to(dtype)
    for parameter in made.parameters():
        nn.init.uniform_(parameter, 0.5, 2.0)
    return made


def step(made, x, grad):
    x = x.clone().requires_grad_()
    y = made(x)
    (y * grad).sum().backward()
    return {
        "y": y.detach(),
        "dx": x.grad,
        **{f"d_{name}": parameter.grad for name, parameter in made.named_parameters()},
        **dict(made.named_buffers()),
    }


def cases():
    return {(kind, dtype): (kind, dtype) for kind in ("bn", "ibn") for dtype in (torch.float64, torch.float32)}


def worker(rank: int):
    results = {}
    for kind, dtype in cases():
        x, grad = (value[SHARES[rank]] for value in batch(dtype))
        results[kind, dtype] = step(layer(kind, dtype), x, grad)
    own = layer("bn", torch.float64)
    set_synchronised(own, False)
    results["own"] = step(own, *(value[SHARES[rank]] for value in batch()))
    x, grad = (value[SHARES[rank]].bfloat16() for value in batch())
    results["bf16"] = step(layer("bn", torch.float32), x, grad)
    return results


@pytest.fixture(scope="module")
def two_workers(gloo):
    return gloo(worker)


@pytest.mark.parametrize(("kind", "dtype"), list(cases()))
def test_two_workers_are_one_on_the_whole_batch(two_workers, kind, dtype):
    whole = step(layer(kind, dtype), *batch(dtype))
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    for name, expected in whole.items():
        parts = [result[kind, dtype][name] for result in two_workers]
        if name in ("y", "dx"):
            together = torch.cat(parts)
        elif name.startswith("d_"):
            together = sum(parts)
        else:
            torch.testing.assert_close(parts[0], parts[1], rtol=0, atol=0)
            together = parts[0]
        assert together.dtype == expected.dtype, name
        torch.testing.assert_close(together, expected, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: n + m)


def test_synchronisation_can_be_switched_off(two_workers):
    for rank, result in enumerate(two_workers):
        expected = step(layer("bn", torch.float64), *(value[SHARES[rank]] for value in batch()))
        for name, value in result["own"].items():
            torch.testing.assert_close(value, expected[name])
    assert not torch.allclose(two_workers[0]["own"]["running_mean"], two_workers[1]["own"]["running_mean"])


def test_bf16_input_gives_bf16_output_near_float32(two_workers):
    whole = step(layer("bn", torch.float32), *batch(torch.float32))
    for name in ("y", "dx"):
        together = torch.cat([result["bf16"][name] for result in two_workers])
        assert together.dtype == torch.bfloat16
        torch.testing.assert_close(together.float(), whole[name], rtol=3e-2, atol=6e-2)


def test_alone_it_is_batch_norm():
    x, grad = batch()
    ours, theirs = layer("bn", torch.float64), nn.BatchNorm2d(CHANNELS).double()
    theirs.load_state_dict(ours.state_dict())
    expected = step(theirs, x, grad)
    for name, value in step(ours, x, grad).items():
        torch.testing.assert_close(value, expected[name])
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_vectors_are_normalised_too():
    x = batch()[0][:, :, 0, 0]
    torch.testing.assert_close(layer("bn", torch.float64)(x), layer("bn", torch.float64)(x[..., None, None])[..., 0, 0])


def test_ibn_is_instance_norm_on_the_first_half_and_batch_norm_on_the_rest():
    x, _ = batch()
    ibn = layer("ibn", torch.float64)
    y = ibn(x)
    weight, bias = ibn.IN.weight.view(-1, 1, 1), ibn.IN.bias.view(-1, 1, 1)
    first = x[:, :3]
    var, mean = torch.var_mean(first, (2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(y[:, :3], (first - mean) / (var + 1e-5).sqrt() * weight + bias)
    weight, bias = ibn.BN.weight.view(-1, 1, 1), ibn.BN.bias.view(-1, 1, 1)
    rest = x[:, 3:]
    var, mean = torch.var_mean(rest, (0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(y[:, 3:], (rest - mean) / (var + 1e-5).sqrt() * weight + bias)
    assert {name.split(".")[0] for name in ibn.state_dict()} == {"IN", "BN"}
