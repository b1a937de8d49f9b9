"""Faults planted in a drawn pool: how many, where, what they look like, and that the other images stay as they are."""

import io
import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from rayreid.config import Source
from rayreid.data.datasets import open_dataset
from rayreid.data.store.store import Record
from rayreid.data.synthetic.planted import FRAMES, KINDS, Planted
from rayreid.data.synthetic.synthetic import ORIGINS, Synthetic
from rayreid.errors import UserError
from rayreid.selection.image_measures import MEASURES, measures_of
from rayreid.selection.provenance import planted_of

SHARES = {"near_duplicate": 0.14, "copy": 0.05, "blurred": 0.1, "uniform": 0.06, "backdrop": 0.05}
OPTIONS = {"part": "pool", "size": [64, 32], "cameras": 4, "images": 200, "relevant": 0.3}


@pytest.fixture(scope="module")
def plain():
    return Synthetic(**OPTIONS)


@pytest.fixture(scope="module")
def pool():
    return Synthetic(**OPTIONS, planted=SHARES)


@pytest.fixture(scope="module")
def images(pool):
    return {record.key: pool.read(record) for record in pool.records()}


def read(dataset, key):
    return dataset.read(Record(key, -1, -1, "pool", key))


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def measure(name, data):
    return measures_of(pixels(data), data)[MEASURES.index(name)]


def test_nothing_is_planted_unless_asked_for(plain):
    assert plain.planted_images() == {} == Synthetic(part="target", planted=SHARES).planted_images()
    assert (
        Synthetic(**OPTIONS, planted={}).planted_images() == {} == Synthetic(**OPTIONS, planted=None).planted_images()
    )


def test_every_kind_has_its_share(pool):
    planted = pool.planted_images()
    assert Counter(image.kind for image in planted.values()) == {
        kind: round(200 * share) for kind, share in SHARES.items()
    }
    assert list(planted) == sorted(planted) and set(SHARES) == set(KINDS)
    numbers = np.array([int(key[5:12]) for key in planted])
    assert numbers.min() < 20 and numbers.max() > 180  # no place in the pool tells


def test_the_other_images_stay_as_they_are(plain, pool, images):
    planted = pool.planted_images()
    assert [r.key for r in plain.records()] == list(images)
    for key in list(images)[::7]:
        assert (images[key] == read(plain, key)) == (key not in planted)


def test_images_depend_on_the_options_and_the_key_alone(pool, images):
    for dataset in (Synthetic(**OPTIONS, planted=dict(reversed(SHARES.items()))), pickle.loads(pickle.dumps(pool))):
        assert dataset.planted_images() == pool.planted_images()
        assert all(read(dataset, key) == images[key] for key in list(pool.planted_images())[::9])
    assert Synthetic(**OPTIONS, planted=SHARES, seed=1).planted_images() != pool.planted_images()


def test_duplicates_name_an_image_that_is_not_planted(pool):
    planted = pool.planted_images()
    for image in planted.values():
        assert (image.source != "") == (image.kind in ("near_duplicate", "copy"))
        assert image.source not in planted
    tracks = Counter(image.source for image in planted.values() if image.kind == "near_duplicate")
    assert len(tracks) <= 28 / (FRAMES - 1) and max(tracks.values()) > 4


def test_copies_repeat_the_bytes_and_neighbouring_frames_nearly_the_pixels(pool, images):
    shown = {key: pixels(data) for key, data in images.items()}
    planted = pool.planted_images()
    for key, image in planted.items():
        if image.kind == "copy":
            assert images[key] == images[image.source]
        elif image.kind == "near_duplicate":
            assert images[key] != images[image.source]
            near = np.abs(shown[key].astype(int) - shown[image.source]).mean()
            others = [np.abs(shown[key].astype(int) - shown[other]).mean() for other in images if other not in planted]
            assert near <= min(others) and near > 0


def test_planted_images_have_the_size_and_the_quality_of_all_others(images):
    for data in images.values():
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 64))
        assert measure("jpeg_quality", data) == 90


def test_blurred_and_plain_crops_are_as_their_kind_says(plain, pool, images):
    for key, image in pool.planted_images().items():
        if image.kind == "blurred":
            assert measure("sharpness", images[key]) < 0.5 * measure("sharpness", read(plain, key))
        elif image.kind == "uniform":
            assert measure("border", images[key]) == 1


def test_origins_are_those_of_what_is_shown(plain, pool):
    origins, before = pool.origins(), plain.origins()
    for key, image in pool.planted_images().items():
        if image.kind in ("uniform", "backdrop"):
            assert origins[key] == ORIGINS[2]
        else:
            assert origins[key] == before[image.source or key]
    assert all(origins[key] == before[key] for key in origins.keys() - pool.planted_images().keys())


def test_the_planted_images_are_read_from_the_configuration():
    table = planted_of(Source(dataset="synthetic", options={**OPTIONS, "planted": SHARES}))
    found = {row["key"]: Planted(row["kind"], row["source"]) for row in table.to_pylist()}
    assert found == Synthetic(**OPTIONS, planted=SHARES).planted_images()
    assert planted_of(Source(dataset="synthetic", options=OPTIONS)) is None
    assert planted_of(Source(dataset="folder", root="pool")) is None


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        ({"blurry": 0.1}, r"planted has no kind 'blurry'; did you mean 'blurred'\? Known: near_duplicate, copy"),
        ({"blurred": 1}, "planted.blurred is 1; give a share of the pool, from 0 to below 1"),
        ({"blurred": -0.1}, "planted.blurred is -0.1"),
        ({"blurred": "many"}, "planted.blurred is 'many'"),
        ({"blurred": float("nan")}, "planted.blurred is nan"),
        ({"blurred": 0.5, "copy": 0.5}, "planted adds up to 1 of the pool; give less than 1"),
        ({"blurred": 0.999}, "planted leaves none of 200 images as it is; lower a share"),
        (0.5, "option planted is 0.5; give names with values"),
    ],
)
def test_wrong_shares_are_refused_in_one_line(planted, message):
    with pytest.raises(UserError, match=message) as refused:
        open_dataset("synthetic", None, **OPTIONS, planted=planted)
    assert "\n" not in str(refused.value)
