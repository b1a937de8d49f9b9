"""The drawn data set: deterministic, disjoint, of the asked make-up, and neither trivial nor hopeless."""

import io
import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from rayreid.data.datasets import open_dataset
from rayreid.data.store.store import Record
from rayreid.data.synthetic.synthetic import ORIGINS, Synthetic
from rayreid.errors import UserError

SMALL = {"size": (64, 32), "identities": 5, "test_identities": 12, "cameras": 4}


@pytest.fixture(scope="module")
def target():
    return Synthetic(**SMALL)


@pytest.fixture(scope="module")
def pool():
    return Synthetic(part="pool", size=(64, 32), cameras=4, images=201, relevant=0.3)


def pixels(dataset, record):
    return np.asarray(Image.open(io.BytesIO(dataset.read(record))))


@pytest.mark.parametrize("part", ["target", "pool"])
def test_bytes_depend_on_seed_and_key_alone(part):
    options = {**SMALL, "part": part, "images": 40}
    first, second, other = Synthetic(**options), Synthetic(**options), Synthetic(**options, seed=1)
    records = first.records()
    assert records == second.records()
    sample = records[:: len(records) // 8]
    data = [first.read(r) for r in sample]
    assert data == [second.read(r) for r in reversed(sample)][::-1]  # nor on the order
    assert data == [pickle.loads(pickle.dumps(first)).read(r) for r in sample]
    assert all(a != other.read(r) for a, r in zip(data, sample, strict=True))
    assert len(set(data)) == len(data)


def test_splits_are_as_in_market1501(target):
    records = target.records()
    assert len({r.key for r in records}) == len(records)
    pids = {s: {r.pid for r in records if r.split == s} for s in ("train", "query", "gallery")}
    assert pids["train"] == set(range(1, 6))
    assert pids["query"] == set(range(6, 18))
    assert pids["gallery"] == pids["query"] | {-1}
    assert Counter(r.split for r in records if r.pid > 0) == {"train": 40, "query": 48, "gallery": 48}
    assert {r.camid for r in records} == {1, 2, 3, 4}
    assert max(Counter((r.pid, r.camid) for r in records if r.split == "query").values()) == 1


def test_every_query_has_a_true_match_in_another_camera(target):
    gallery = [r for r in target.records() if r.split == "gallery"]
    for query in (r for r in target.records() if r.split == "query"):
        assert any(g.pid == query.pid and g.camid != query.camid for g in gallery)


@pytest.mark.parametrize("size", [(64, 32), [40, 24]])
@pytest.mark.parametrize("part", ["target", "pool"])
def test_images_have_the_asked_size(part, size):
    dataset = Synthetic(part=part, **{**SMALL, "size": size}, images=40)
    for record in dataset.records()[:40]:
        image = Image.open(io.BytesIO(dataset.read(record)))
        image.load()
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (size[1], size[0]))


def test_pool_holds_the_asked_shares(pool):
    records, origins = pool.records(), pool.origins()
    assert [r.key for r in records] == list(origins)
    assert {(r.pid, r.camid, r.split) for r in records} == {(-1, -1, "pool")}
    counts = Counter(origins.values())
    assert counts == {"target_domain": 60, "other_domain": 70, "background": 71}
    order = np.array([ORIGINS.index(o) for o in origins.values()])
    assert (np.diff(order) != 0).sum() > 50  # shuffled: the key's number does not tell the origin


def test_pool_in_the_targets_domain_looks_like_the_target(target, pool):
    """The image of the target nearest to a relevant image is nearer than that to any other pool image."""
    shown = np.stack([pixels(target, r) for r in target.records() if r.pid > 0]).astype(np.int16)
    distances = {origin: [] for origin in ORIGINS}
    for key, origin in pool.origins().items():
        image = pixels(pool, Record(key, -1, -1, "pool", key))
        distances[origin].append(np.abs(shown - image).mean((1, 2, 3)).min())
    means = {origin: np.mean(values) for origin, values in distances.items()}
    assert means["target_domain"] < 0.95 * min(means["other_domain"], means["background"]), means


def test_persons_of_the_pool_are_not_the_targets(target, pool):
    persons = {target._rng("person", "target", pid).integers(2**62) for pid in range(1, 18)}
    strangers = {pool._rng("person", "pool", pid).integers(2**62) for pid in range(17)}
    assert not persons & strangers


def histogram(image):
    """Square roots of the RGB histogram of the image's middle; products are Bhattacharyya similarities."""
    middle = image[:, image.shape[1] // 4 : -image.shape[1] // 4].reshape(-1, 3)
    counts, _ = np.histogramdd(middle, bins=6, range=[(0, 256)] * 3)
    return np.sqrt(counts.ravel() / counts.sum())


def test_colours_tell_something_about_identity_but_not_all():
    dataset = Synthetic(size=(64, 32), test_identities=30, identities=1)
    records = [r for r in dataset.records() if r.split != "train" and r.pid > 0]
    features = np.stack([histogram(pixels(dataset, r)) for r in records])
    pids, cams = np.array([r.pid for r in records]), np.array([r.camid for r in records])
    query = np.array([r.split == "query" for r in records])
    similarity = features[query] @ features[~query].T
    same = pids[query][:, None] == pids[~query]
    across = cams[query][:, None] != cams[~query]
    assert similarity[same & across].mean() > similarity[~same & across].mean() + 0.02
    rank1 = np.take_along_axis(same, np.where(across, similarity, -1).argmax(1)[:, None], 1).mean()
    assert 2 / 30 < rank1 < 0.8


@pytest.mark.parametrize(
    "options",
    [
        {"part": "train"},
        {"seed": -1},
        {"seed": 0.5},
        {"size": 64},
        {"size": (64, 8)},
        {"size": "ab"},
        {"cameras": 1},
        {"identities": 0},
        {"images_per_camera": 1},
        {"images": True},
        {"relevant": 0.0},
        {"relevant": 1},
        {"relevant": "half"},
        {"colour": "red"},
    ],
)
def test_wrong_options_are_the_users_to_mend(options):
    with pytest.raises(UserError, match=next(iter(options))):
        open_dataset("synthetic", None, **options)


@pytest.mark.parametrize("key", ["pool/0000000.jpg", "train/0001_c9_000.jpg", "train/0999_c1_000.jpg", "photo.png"])
def test_foreign_keys_are_refused(target, key):
    with pytest.raises(UserError, match=key):
        target.read(Record(key, -1, -1, "train", key))
