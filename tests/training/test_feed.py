import io
import itertools
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from rayreid.data.sampling.batch_plans import IdentityPlan, ShufflePlan
from rayreid.data.store.store import ImageStore, Record, finish_store, write_shard
from rayreid.errors import UserError
from rayreid.training.feed import Prefetcher

CPU = torch.device("cpu")
IMAGES, BATCH = 14, 4


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ImageStore:
    """Fourteen images in two shards, each of one grey and of its own size: number n is all 10·n."""
    folder = tmp_path_factory.mktemp("feed") / "store"

    def read(record: Record) -> bytes:
        number = int(record.path)
        stream = io.BytesIO()
        Image.new("RGB", (6 + number % 3, 8 + number), (10 * number,) * 3).save(stream, "PNG")
        return stream.getvalue()

    records = [Record(f"{n:02d}.png", n // 4, n % 2, "pool", str(n)) for n in range(IMAGES)]
    write_shard(folder, 0, records[:8], read)
    write_shard(folder, 1, records[8:], read)
    finish_store(folder, 2, "grey", "1")
    return ImageStore(folder)


class Uneven:
    """The store, some of whose images take longer to decode than others."""

    def __init__(self, store: ImageStore):
        self.keys, self._store = store.keys, store

    def images(self, rows: list[int]) -> list[np.ndarray]:
        time.sleep(0.004 * sum((row * 7) % 4 for row in rows))
        return self._store.images(rows)


def as_it_comes(images, keys, epoch, rows):
    return images, list(keys), epoch, rows


def feed(store, plan=None, **changes) -> Prefetcher:
    return Prefetcher(store, plan or ShufflePlan(np.arange(IMAGES), BATCH, seed=3), as_it_comes, CPU, **changes)


@pytest.mark.parametrize("start", [0, 1, 2, 3, 7])
@pytest.mark.parametrize(("threads", "ahead", "accumulate"), [(1, 1, 1), (3, 5, 1), (3, 8, 2), (2, 1, 4)])
def test_the_plan_s_rows_come_in_order_from_any_step(store, start, threads, ahead, accumulate):
    plan = ShufflePlan(np.arange(IMAGES), BATCH, seed=3)
    stream = feed(Uneven(store), plan, threads=threads, ahead=ahead, accumulate=accumulate)(start)
    for step in range(start, start + 4):
        epoch, within = divmod(step, plan.steps_per_epoch)
        expected = plan.batch(epoch, within)
        micro = list(itertools.islice(stream, accumulate))
        assert [key for batch in micro for key in batch.keys] == [store.keys[row] for row in expected]
        for batch in micro:
            images, keys, seen_epoch, rows = batch.data
            assert seen_epoch == epoch
            assert len(rows) == BATCH // accumulate
            assert keys == batch.keys == [store.keys[row] for row in rows]
            for place, row in enumerate(rows):
                assert images.heights[place] == store.heights[row] == 8 + row
                assert images.widths[place] == store.widths[row]
                assert images.image(place).unique().tolist() == [10 * row]
            assert batch.wait >= 0


def test_what_comes_does_not_depend_on_threads(store):
    def keys(**changes):
        return [batch.keys for batch in itertools.islice(feed(Uneven(store), **changes)(1), 9)]

    assert keys(threads=1, ahead=1) == keys(threads=4, ahead=6)


def test_identities_come_whole(store):
    plan = IdentityPlan(np.arange(12), store.pids[:12], identities=2, instances=2, seed=0)
    for batch in itertools.islice(feed(store, plan)(0), 5):
        pids = store.pids[batch.data[3]]
        assert pids[0] == pids[1] != pids[2] == pids[3]


@pytest.mark.parametrize(("device", "beside"), [("cpu", True), ("meta", False)])
def test_images_are_prepared_beside_the_step_on_a_cpu_and_by_the_loop_on_a_device(store, device, beside):
    seen = []
    made = Prefetcher(
        store,
        ShufflePlan(np.arange(IMAGES), BATCH, seed=3),
        lambda *args: seen.append(threading.current_thread()),
        torch.device(device),
        threads=3,
    )
    list(itertools.islice(made(0), 3))
    assert (threading.current_thread() not in seen) == beside


def test_a_worker_gets_its_share(store, monkeypatch):
    plan = ShufflePlan(np.arange(IMAGES), BATCH, seed=3)
    monkeypatch.setattr("rayreid.training.parallel.world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr("rayreid.training.parallel.rank", lambda rank=rank: rank)
        shares.append(next(feed(store, plan)(4)).data[3])
    assert np.concatenate(shares).tolist() == plan.batch(1, 1).tolist()


def test_every_thread_has_an_image_to_decode(store):
    class Together(Uneven):
        met = threading.Barrier(6)

        def images(self, rows: list[int]) -> list[np.ndarray]:
            self.met.wait(timeout=10)  # fails unless six are being decoded at once
            return self._store.images(rows)

    next(feed(Together(store), threads=6, accumulate=BATCH)(0))


def test_waiting_is_measured(store):
    class Slow(Uneven):
        def images(self, rows: list[int]) -> list[np.ndarray]:
            time.sleep(0.08)
            return self._store.images(rows)

    assert next(feed(Slow(store), threads=1, ahead=1)(0)).wait > 0.05


def test_an_image_that_breaks_later_ends_the_feed_with_its_error(store):
    class Broken(Uneven):
        def images(self, rows: list[int]) -> list[np.ndarray]:
            if 5 in rows:
                raise UserError("image 05.png is broken")
            return self._store.images(rows)

    with pytest.raises(UserError, match=r"05\.png"):
        list(itertools.islice(feed(Broken(store))(0), 6))


def test_a_share_that_cannot_be_dealt_into_equal_micro_batches_is_refused(store):
    with pytest.raises(UserError, match="accumulate"):
        next(feed(store, accumulate=3)(0))


@pytest.mark.parametrize(("start", "end"), [(0, 3), (1, 5), (2, 2)])
def test_it_ends_where_it_is_told_and_asks_the_plan_for_nothing_beyond(store, start, end):
    class Watched(ShufflePlan):
        def batch(self, epoch, step, rank=0, world=1):
            assert epoch * self.steps_per_epoch + step < end
            return super().batch(epoch, step, rank, world)

    plan = Watched(np.arange(IMAGES), BATCH, seed=3)
    bounded = [batch.keys for batch in feed(store, plan, accumulate=2)(start, end)]
    assert bounded == [batch.keys for batch in itertools.islice(feed(store, accumulate=2)(start), 2 * (end - start))]


@pytest.mark.gpu
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_gpu_gets_the_images_of_a_cpu(store, accumulate):
    def content(device: torch.device) -> list[tuple[list[str], int, list[int], list[int]]]:
        plan = ShufflePlan(np.arange(IMAGES), BATCH, seed=3)
        found = []
        for batch in Prefetcher(store, plan, as_it_comes, device, accumulate)(1, 8):
            images, keys, epoch, rows = batch.data
            assert images.pixels.device.type == device.type
            assert keys == batch.keys
            found.append((batch.keys, epoch, rows.tolist(), images.pixels.cpu().tolist()))
        return found

    assert content(torch.device("cuda")) == content(CPU)
