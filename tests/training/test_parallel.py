from unittest.mock import patch

import pytest
import torch

from gloo_workers import WORLD
from rayreid.training import averaging, parallel


def _grad(rank: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.full(shape, float(rank + 1)) + torch.arange(torch.Size(shape).numel()).view(shape)


@patch.object(averaging, "BUCKET_BYTES", 64)  # the gradients below then need several buckets
def _worker(rank: int) -> dict[str, object]:
    results: dict[str, object] = {"rank": parallel.rank(), "world": parallel.world_size()}

    summed = torch.tensor([1.0, 10.0]) * (rank + 1)
    assert parallel.all_reduce_sum(summed) is summed
    results["sum"] = summed

    results["broadcast"] = parallel.broadcast(torch.full((2,), float(rank)), source=1)

    norm = torch.nn.BatchNorm1d(2)
    norm(torch.randn(4, 2) + 5 * (rank + 1))
    before = norm.running_mean.clone()
    parallel.broadcast_buffers(norm)
    results["buffers"] = before, norm.running_mean, norm.num_batches_tracked

    parameters = [torch.nn.Parameter(torch.zeros(s)) for s in ((3, 4), (5,), (), (40,))]
    parameters.append(torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)))
    parameters.append(torch.nn.Parameter(torch.zeros(7)))  # has no gradient
    for parameter in parameters[:-1]:
        parameter.grad = _grad(rank, tuple(parameter.shape)).to(parameter.dtype)
    parameters[0].grad = parameters[0].grad.t().contiguous().t()  # not contiguous
    averaging.average_gradients(parameters)
    results["gradients"] = [p.grad for p in parameters]

    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = parallel.differentiable_all_reduce(x * (rank + 1))
    (y * torch.tensor([1.0, 10.0]) * (rank + 1)).sum().backward()
    results["all_reduce"], results["all_reduce_grad"] = y.detach(), x.grad

    # One weight, rows dealt to the workers, a loss of all rows: the averaged gradient is the single process's
    weight = torch.tensor([0.5, -1.0], requires_grad=True)
    rows = torch.tensor([[1.0, 2.0], [3.0, 5.0], [7.0, 11.0], [13.0, 17.0]])[rank * 2 : rank * 2 + 2]
    gathered = parallel.gather_rows(rows * weight)
    torch.cdist(gathered, gathered).square().sum().backward()
    averaging.average_gradients([weight])
    results["rows"], results["rows_grad"] = gathered.detach(), weight.grad

    results["text"] = parallel.broadcast_text(f"worker {rank}" * (1 + 99 * rank), 1, torch.device("cpu"))
    results["texts"] = parallel.gather_texts(f"worker {rank}" * (1 + 99 * rank), torch.device("cpu"))

    return results


@pytest.fixture(scope="module")
def workers(gloo):
    return gloo(_worker)


def test_ranks(workers):
    assert [(w["rank"], w["world"]) for w in workers] == [(0, WORLD), (1, WORLD)]


def test_all_reduce_sums_in_place(workers):
    for worker in workers:
        assert worker["sum"].tolist() == [3.0, 30.0]


def test_broadcast_takes_the_source(workers):
    for worker in workers:
        assert worker["broadcast"].tolist() == [1.0, 1.0]


def test_running_statistics_become_those_of_the_source(workers):
    (own, found, _), (other, also, counted) = (worker["buffers"] for worker in workers)
    assert torch.equal(found, own) and torch.equal(also, own) and not torch.equal(other, own)
    assert counted == 1


def test_gather_texts_takes_all_in_the_order_of_rank(workers):
    for result in workers:
        assert result["texts"] == ["worker 0", "worker 1" * 100]
    assert parallel.gather_texts("alone", torch.device("cpu")) == ["alone"]


def test_broadcast_text_takes_the_source_of_any_length(workers):
    for worker in workers:
        assert worker["text"] == "worker 1" * 100


def test_average_gradients_is_the_mean_of_every_dtype_shape_and_bucket(workers):
    for worker in workers:
        *averaged, without = worker["gradients"]
        assert without is None
        for gradient in averaged:
            expected = (_grad(0, tuple(gradient.shape)) + _grad(1, tuple(gradient.shape))) / 2
            torch.testing.assert_close(gradient, expected.to(gradient.dtype))
    assert {g.dtype for g in workers[0]["gradients"][:-1]} == {torch.float32, torch.float64}


def test_all_reduce_passes_gradients_of_all_workers(workers):
    for rank, worker in enumerate(workers):
        torch.testing.assert_close(worker["all_reduce"], torch.tensor([3.0, 6.0]))
        # dL/dy summed over the workers is (1 + 2)·(1, 10); times dy/dx of this one
        torch.testing.assert_close(worker["all_reduce_grad"], torch.tensor([3.0, 30.0]) * (rank + 1))


def test_gathered_rows_give_the_gradient_of_one_process(workers):
    weight = torch.tensor([0.5, -1.0], requires_grad=True)
    rows = torch.tensor([[1.0, 2.0], [3.0, 5.0], [7.0, 11.0], [13.0, 17.0]]) * weight
    torch.cdist(rows, rows).square().sum().backward()
    for worker in workers:
        torch.testing.assert_close(worker["rows"], rows.detach())
        torch.testing.assert_close(worker["rows_grad"], weight.grad)


def test_nothing_happens_without_a_process_group():
    assert (parallel.world_size(), parallel.rank()) == (1, 0)
    tensor = torch.tensor([1.0, 2.0])
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0])
    averaging.average_gradients([parameter])
    assert parallel.broadcast_text("alone", 0, torch.device("cpu")) == "alone"
    for operation in (parallel.all_reduce_sum, parallel.broadcast, parallel.gather_rows):
        assert operation(tensor).tolist() == [1.0, 2.0]
    assert parallel.differentiable_all_reduce(tensor) is tensor
    assert parameter.grad.tolist() == [3.0, 4.0]
