"""Forward passes over a store: what an actor gives back, and what comes of it; without a cluster."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ray.exceptions import WorkerCrashedError

from rayreid.data.store.store import Record, finish_store, write_shard
from rayreid.errors import UserError
from rayreid.execution import actor_pool
from rayreid.execution.actor_pool import _Actor, _unpack, stream
from rayreid.execution.resources import Share


def write_store(folder: Path, broken: int | None = None) -> Path:
    """Ten grey images, of the brightness of ten times their row; one may be cut short."""

    def read(record: Record) -> bytes:
        number = int(record.key[0])
        buffer = io.BytesIO()
        Image.new("L", (8, 16), 10 * number).save(buffer, "PNG")
        data = buffer.getvalue()
        return data[:-30] if number == broken else data

    write_shard(folder, 0, [Record(f"{n}.png", -1, -1, "pool", "") for n in range(10)], read, "header")
    finish_store(folder, 1, "mine", "")
    return folder


def brightness(device):
    """A head: the brightness of each image."""
    return lambda images, keys: np.array([image.float().mean() for image in images.pixels[images.offsets]])


def item(rows) -> dict[str, list]:
    return {"number": np.array([0]), "rows": [np.asarray(rows)]}


@pytest.mark.parametrize("cpus", [1, 2])
def test_an_actor_computes_and_decodes_with_as_many_threads_as_it_has_cpus(tmp_path, cpus):
    actor = _Actor(write_store(tmp_path / "store"), brightness, 3, Share(1, cpus, False))
    assert torch.get_num_threads() == actor.run._decoders._max_workers == cpus


def test_an_actor_computes_rows_in_batches(tmp_path):
    actor = _Actor(write_store(tmp_path / "store"), brightness, 3, Share(1, 2, False))
    rows, values, broken = _unpack({name: column[0] for name, column in actor(item([1, 2, 4, 5, 9])).items()})
    assert rows.tolist() == [1, 2, 4, 5, 9]
    assert values.tolist() == [10, 20, 40, 50, 90]
    assert broken == {}


def test_an_image_that_cannot_be_decoded_is_told_apart(tmp_path):
    actor = _Actor(write_store(tmp_path / "store", broken=4), brightness, 3, Share(1, 2, False))
    rows, values, broken = _unpack({name: column[0] for name, column in actor(item(range(10))).items()})
    assert rows.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9] and values.tolist() == [10 * row for row in rows]
    assert list(broken) == [4] and broken[4]


def refusing(device):
    def head(images, keys):
        raise UserError(f"no feature for {keys[0]}")

    return head


def unbuildable(device):
    raise UserError("weights.safetensors: another architecture")


@pytest.mark.parametrize(("build", "message"), [(refusing, "no feature for 7.png"), (unbuildable, "another arch")])
def test_what_the_user_can_mend_arrives_as_such(tmp_path, build, message):
    actor = _Actor(write_store(tmp_path / "store"), build, 3, Share(1, 2, False))
    result = actor(item([7, 8]))
    assert {len(column) for column in result.values()} == {1}  # Ray Data wants columns of one length
    with pytest.raises(UserError, match=message):
        _unpack({name: column[0] for name, column in result.items()})


def test_a_shard_that_is_not_there_is_the_users_to_mend(tmp_path):
    store = write_store(tmp_path / "store")
    next(store.glob("shards/*.arrow")).unlink()
    result = _Actor(store, brightness, 3, Share(1, 2, False))(item([7]))
    with pytest.raises(UserError, match="the shard is missing"):
        _unpack({name: column[0] for name, column in result.items()})


def test_a_fault_of_the_program_stays_one(tmp_path):
    def faulty(device):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _Actor(write_store(tmp_path / "store"), faulty, 3, Share(1, 2, False))


def test_a_gpu_that_does_not_hold_the_models_is_told_as_such(tmp_path):
    def exhausted(device):
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    actor = _Actor(write_store(tmp_path / "store"), exhausted, 3, Share(1, 2, False))
    with pytest.raises(UserError, match=r"^the GPU's memory does not hold the models .*free some of it$"):
        _unpack({name: column[0] for name, column in actor(item([0])).items()})


@pytest.mark.parametrize("rows", [[], [np.zeros(0, np.int64)]])
def test_nothing_to_do_needs_no_cluster(tmp_path, monkeypatch, rows):
    def refuse(*args, **kwargs):
        raise AssertionError("there is nothing to do")

    monkeypatch.setattr(actor_pool, "scoring_actors", refuse)
    monkeypatch.setattr("ray.data.from_items", refuse)
    assert list(stream(tmp_path, rows, brightness, 8)) == []


# What is lost on the way


class KilledError(WorkerCrashedError):
    def __str__(self):
        return "killed\nin action"


class Execution:
    """Stands for Ray Data or plain tasks: gives some results, then loses a worker; as often as there are numbers."""

    def __init__(self, *results, devices=(("fp32", "CPU"),)):
        self.results, self.asked, self.devices = list(results), [], devices

    def __call__(self, store, left, build, batch_size):
        self.asked.append(sorted(left))
        count = self.results.pop(0) if self.results else len(left)
        for number in list(left)[:count]:
            rows = np.asarray(left[number])
            precision, machine = self.devices[number % len(self.devices)]
            place = {"number": number, "precision": precision, "machine": machine}
            yield {**place, "row": rows, "value": rows * 1.0, "bad": [], "reason": "", "fault": ""}
        if count < len(self.asked[-1]):
            raise KilledError


@pytest.fixture
def lose(monkeypatch):
    """Stream ten rows two by two through some `Execution`."""
    monkeypatch.setattr(actor_pool, "scoring_actors", lambda: Share(1, 1, False))
    monkeypatch.setitem(actor_pool._CHUNK, "cpu", (2, 2))

    def lose(execution):
        monkeypatch.setattr(actor_pool, "_execute", execution)
        monkeypatch.setattr(actor_pool, "_execute_few", execution)
        return [row for rows, _, _ in stream(Path(), [np.arange(6), np.arange(6, 10)], brightness, 8) for row in rows]

    return lose


def test_what_was_not_done_when_a_worker_was_lost_is_done_by_the_others(lose, caplog):
    execution = Execution(2, 0, 0, 1)
    assert sorted(lose(execution)) == list(range(10))
    assert execution.asked == [[0, 1, 2, 3, 4], [2, 3, 4], [2, 3, 4], [2, 3, 4], [3, 4]]
    assert "a worker was lost" in caplog.text and "killed" in caplog.text and "in action" not in caplog.text


def test_workers_that_are_lost_before_they_give_anything_end_it(lose):
    execution = Execution(1, 0, 0, 0)
    with pytest.raises(KilledError):
        lose(execution)
    assert len(execution.asked) == 4


def test_devices_that_compute_in_different_precisions_are_refused(lose):
    assert sorted(lose(Execution(devices=[("bf16", "A100"), ("bf16", "L4")]))) == list(range(10))
    with pytest.raises(UserError, match=r"\(bf16 on A100, fp16 on T4\): set score\.precision to one of them"):
        lose(Execution(devices=[("bf16", "A100"), ("fp16", "T4")]))


@pytest.mark.parametrize(("images", "items"), [(10, 1), (1000, 8), (50_000, 65), (1_000_000, 977)])
def test_items_are_few_and_small(lose, monkeypatch, images, items):
    execution = Execution()
    monkeypatch.setattr(actor_pool, "_CHUNK", {"cpu": (128, 1024)})
    monkeypatch.setattr(actor_pool, "_execute", execution)
    monkeypatch.setattr(actor_pool, "_execute_few", execution)
    assert sum(len(part) for part, _, _ in stream(Path(), [np.arange(images)], brightness, 8)) == images
    assert len(execution.asked[0]) == items


@pytest.mark.parametrize(("images", "few"), [(2048, True), (2049, False)])
def test_ray_data_is_only_executed_for_what_is_worth_it(lose, monkeypatch, images, few):
    plain, data = Execution(), Execution()
    monkeypatch.setattr(actor_pool, "_execute_few", plain)
    monkeypatch.setattr(actor_pool, "_execute", data)
    rows = [np.arange(images - 1), np.array([images - 1])]
    assert sum(len(part) for part, _, _ in stream(Path(), rows, brightness, 8)) == images
    assert (len(plain.asked), len(data.asked)) == ((1, 0) if few else (0, 1))
