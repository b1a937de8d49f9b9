import pytest

from rayreid.config import Source
from rayreid.pipeline.forecast import images
from rayreid.pipeline.forecast.images import ImageCounts, published
from rayreid.stages import ingest
from small_store import small_store

TARGET = {"part": "target", "size": [64, 32], "identities": 10, "test_identities": 6, "cameras": 3}


def store_of(outputs, /, **source):
    return ingest.plan(outputs, Source(**source))


def test_a_dataset_is_counted_by_its_listing(tmp_path):
    found = ImageCounts().of(store_of(tmp_path, dataset="synthetic", options=TARGET))
    assert found.origin == "listing" and found.splits["train"] == found.train == 60 and len(found.camids) == 60
    assert list(tmp_path.iterdir()) == []


def test_a_complete_store_is_counted_by_its_manifest(tmp_path):
    store = store_of(tmp_path, dataset="folder", root="gone")
    with store.writing() as folder:
        small_store(folder)
        store.finish({})
    found = ImageCounts().of(store)
    assert (found.origin, found.total, found.pids) == ("store", 12, None)


@pytest.mark.parametrize(
    ("source", "total"),
    [
        ({"dataset": "folder", "root": "data/LUPerson"}, 4_180_243),
        ({"dataset": "market1501", "root": "Market-1501-v15.09.15"}, 36_036),
        ({"dataset": "msmt17", "root": "MSMT17_V1"}, 126_441),
        ({"dataset": "combined", "options": {"parts": [{"dataset": "msmt17"}, {"dataset": "market1501"}]}}, 45_557),
    ],
)
def test_a_published_dataset_that_is_not_here_has_its_published_size(tmp_path, source, total):
    counts = ImageCounts()
    store = store_of(tmp_path, **source)
    found = counts.of(store)
    assert (found.origin, found.total) == ("published", total)
    assert "\n" not in counts.faults[store.id]


@pytest.mark.parametrize("root", ["market1501-resplit", "mine"])
def test_the_layout_alone_tells_no_size(root):
    assert published(Source(dataset="market1501", root=root)) is None


def test_what_is_not_known_says_why(tmp_path):
    counts, store = ImageCounts(), store_of(tmp_path, dataset="nope")
    assert counts.of(store) is None and "there is no dataset 'nope'" in counts.faults[store.id]


def test_a_listing_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_SECONDS", -1.0)
    counts = ImageCounts()
    store = store_of(tmp_path, dataset="synthetic", options={"part": "pool", "images": 10_000, "size": [64, 32]})
    assert counts.of(store) is None and "more than 10,000 images" in counts.faults[store.id]
