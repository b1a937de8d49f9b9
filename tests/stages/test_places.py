"""Places of a pool's images on a map, kept for the next map; without a cluster of machines."""

import numpy as np
import pytest

from known_features import DIMENSIONS, IMAGES, directions, work_on
from rayreid.execution.resources import Share
from rayreid.selection.features import Features
from rayreid.selection.pool_embedding import embed_pool
from rayreid.stages import places, priority
from rayreid.state_files import DamagedFileError

pytestmark = pytest.mark.usefixtures("worked_here")


@pytest.mark.parametrize("shards", [1, 3])
def test_they_are_those_of_the_features_and_read_as_written(known, shards):
    made = known(shards)
    placed = work_on(places.plan(made.pool, made.found, 40, seed=3))
    found = places.read_places(placed.path)
    features = directions(np.arange(IMAGES)).copy()
    features[7] = np.full(DIMENSIONS, np.nan)
    keys = np.array([f"p{row:02d}.jpg" for row in range(IMAGES)], object)
    expected = embed_pool(Features(keys, lambda: iter([(np.arange(IMAGES), features)])), 40, seed=3)
    for name in ("rows", "places", "clusters", "cosines"):
        value = getattr(expected, name)
        np.testing.assert_array_equal(getattr(found, name), value)
        assert getattr(found, name).dtype == value.dtype
    assert placed.facts["images"] == 40 == len(found.rows) and placed.facts["clusters"] == found.clusters.max() + 1


def test_they_need_no_gpu(known, monkeypatch):
    asked = []
    monkeypatch.setattr(priority, "training_share", lambda resources: asked.append(resources.gpu) or Share(1, 1, False))
    made = known(1)
    work_on(places.plan(made.pool, made.found, 40, seed=0))
    assert asked == [False]


def test_another_sample_or_seed_is_another_artifact(known):
    made = known(1)
    ids = {places.plan(made.pool, made.found, images, seed).id for images, seed in ((40, 0), (40, 1), (50, 0))}
    assert len(ids) == 3


def test_damaged_places_are_told(known):
    made = known(1)
    placed = work_on(places.plan(made.pool, made.found, 40, seed=0))
    (placed.path / "places.parquet").write_bytes(b"PAR1")
    with pytest.raises(DamagedFileError, match=r"places\.parquet"):
        places.read_places(placed.path)
