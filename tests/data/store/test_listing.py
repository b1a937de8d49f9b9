import pytest

from rayreid.data.store import listing
from rayreid.data.store.listing import deal
from rayreid.data.store.shards import Record


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(listing, "SHARD_IMAGES", 20)
    monkeypatch.setattr(listing, "LEAST_IMAGES", 5)
    monkeypatch.setattr(listing, "PARTS", 4)
    monkeypatch.setattr(listing, "_CHUNK", 7)


def records(count):
    return [Record(f"k/{i:04d}.jpg", i - 1, i % 3 - 1, "pool", f"/data/ü{i}") for i in range(count)]


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 20, 21, 41, 79, 80, 81, 100, 161, 333])
def test_every_record_comes_back_once_and_in_order(count):
    parts = list(deal(iter(records(count))))
    assert [record for part in parts for record in part.records()] == records(count)
    assert [part.images for part in parts] == [len(part.records()) for part in parts]


@pytest.mark.parametrize(
    ("count", "lengths"),
    [(4, [4]), (12, [5, 5, 2]), (40, [10] * 4), (80, [20] * 4), (81, [20] * 4 + [1]), (165, [20] * 8 + [5])],
)
def test_lengths(count, lengths):
    assert [part.images for part in deal(records(count))] == lengths


def test_a_long_listing_is_not_awaited():
    listed = []

    def endless():
        for record in records(10_000):
            listed.append(record.key)
            yield record

    parts = deal(endless())
    assert next(parts).images == 20
    assert len(listed) < 100
    for _ in range(50):
        next(parts)
    assert len(listed) < 51 * 20 + 120
