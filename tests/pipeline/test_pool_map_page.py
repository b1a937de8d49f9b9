"""The map beside the page on selections: what it shows of a store, and what the page says where there is none."""

import json
import re
from importlib import util
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from rayreid.errors import UserError
from rayreid.evaluation.page import Page
from rayreid.pipeline import pool_map_page, selection_report
from rayreid.pipeline.pool_map_page import NO_FEATURES, check_map, write_map
from rayreid.pipeline.selection_report import Selection
from rayreid.selection.pool_embedding import PoolEmbedding
from rayreid.selection.provenance import Provenance
from rayreid.stages import places
from recorded_run import RecordedRun
from small_store import small_store

IMAGES = 24
SOURCE = "pretrain/0123456789ab"


@pytest.fixture
def pool(tmp_path):
    """A store of three shards, and the places of its images, one of which could not be decoded."""
    rows = np.delete(np.arange(IMAGES), 5)
    drawn = np.random.default_rng(0).normal(size=(IMAGES, 3)).astype(np.float32)[rows]
    embedding = PoolEmbedding(rows, drawn[:, :2], rows % 2, drawn[:, 2])
    return small_store(tmp_path / "store", images=IMAGES // 3), embedding


def data_of(html: str) -> dict:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(text)


def test_the_map_shows_every_selection_of_a_pool(pool, tmp_path):
    store, embedding = pool
    origins = pa.table({"key": store.keys.tolist(), "origin": ["far"] * 16 + ["near"] * 8})
    priorities = {"cfs": np.arange(IMAGES, dtype=float), "random": -np.arange(IMAGES, dtype=float)}
    kept = {"cfs": np.arange(12, 24), "random": np.arange(6)}
    provenance = Provenance(lambda: origins, "near")
    write_map(tmp_path / "map.html", "mine", store, embedding, SOURCE, priorities, kept, provenance)
    html = (tmp_path / "map.html").read_text()
    data = data_of(html)
    assert sorted(data["keys"]) == sorted(np.delete(store.keys, 5))
    names = [column["name"] for column in data["columns"]]
    assert names == [
        *("priority of cfs", "subset of cfs", "priority of random", "subset of random"),
        *("origin", "cluster"),
    ]
    assert data["columns"][4]["names"] == ["far", "near"]
    assert "23 of the 24 images of the pool, drawn at random" in html and SOURCE in html


def test_origins_need_not_be_known(pool, tmp_path):
    store, embedding = pool
    write_map(tmp_path / "map.html", "mine", store, embedding, SOURCE, {"cfs": np.ones(IMAGES)}, {"cfs": [1]}, None)
    data = data_of((tmp_path / "map.html").read_text())
    assert len(data["keys"]) == IMAGES - 1
    assert [column["name"] for column in data["columns"]] == ["priority of cfs", "subset of cfs", "cluster"]


def test_the_page_says_which_images_it_shows():
    assert pool_map_page._shown(1600, 1600) == "All 1,600 images of the pool."
    assert pool_map_page._shown(50_000, 4_180_243).startswith("50,000 of the 4,180,243 images of the pool, drawn at")


@pytest.mark.parametrize("has_features", [True, False])
def test_the_page_links_to_the_map_or_says_why_there_is_none(pool, tmp_path, monkeypatch, has_features):
    store, embedding = pool
    experiment = SimpleNamespace(name="a <b>", pool=SimpleNamespace(provenance=None, dataset="folder"), seed=0)
    selection = Selection("cfs", "cfs", "select/1", {"count": 12}, np.arange(IMAGES, dtype=float))
    page, path = Page("selections"), tmp_path / "selections_map.html"
    monkeypatch.setattr(places, "read_places", lambda folder: embedding)
    features = SimpleNamespace(inputs={"source": SOURCE})
    placed = SimpleNamespace(path=tmp_path, inputs={"features": features}) if has_features else None
    selection_report._add_map(page, path, experiment, store, [selection], placed, RecordedRun())
    html = page.html()
    assert "Map of the pool</h2>" in html and path.exists() == has_features
    assert (f"<p>{NO_FEATURES}</p>" in html) != has_features
    assert ('<a href="selections_map.html">selections_map.html (' in html) == has_features
    if has_features:
        assert "<h1>a &lt;b&gt;: a map of the pool</h1>" in path.read_text()


def test_a_missing_package_names_the_extra(monkeypatch):
    check_map()
    monkeypatch.setattr(pool_map_page, "find_spec", lambda name: None if name == "faiss" else util.find_spec(name))
    with pytest.raises(UserError, match=r"the map of the pool needs the extra rayreid\[faiss\]: .*--no-map"):
        check_map()
