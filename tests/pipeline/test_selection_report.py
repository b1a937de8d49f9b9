"""Selections side by side: what is compared, and what the page says of it; without a cluster."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image

from rayreid.config.loading import load_experiment
from rayreid.data.store.store import ImageStore, Record, finish_store, write_shard
from rayreid.errors import UserError
from rayreid.pipeline import selection_report
from rayreid.pipeline.selection_report import COMPARED, Selection
from rayreid.selection.meaning import Diagnosis
from rayreid.selection.provenance import Provenance
from recorded_run import RecordedRun
from tiny_experiment import TINY

IMAGES = 40


@pytest.fixture
def variants(tmp_path):
    """What is compared of the tiny experiment with some changes."""

    def variants(strategies=COMPARED, **changes) -> dict:
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **changes}))
        return selection_report.variants(load_experiment(tmp_path / "tiny.yaml"), strategies)

    return variants


def test_rows_that_rank_alike_are_one(variants):
    rows = [
        {"pretrain": "none"},
        {"label": "quarter", "select.fraction": 0.25},
        {"label": "long proxies", "proxy.pretrain.epochs": 5},
        {"label": "another draw", "select.strategy": "random", "seed": 3},
        {"label": "stem", "backbone.stem": "ics"},
    ]
    found = variants(compare=rows)
    assert list(found) == [*COMPARED, "long proxies", "another draw"]
    assert found["long proxies"].proxy.pretrain.epochs == 5


def test_the_strategies_can_be_chosen(variants):
    assert list(variants(strategies=["random"])) == ["random"]
    assert variants(pretrain="none") == {}
    whole = variants(strategies=["random"], select={"fraction": 1.0})
    assert whole["random"].select.fraction == 0.5


def test_a_row_that_selects_nothing_stands_for_no_other(variants):
    rows = [
        {"pretrain": "none"},
        {"label": "whole", "select.fraction": 1.0},
        {"label": "half", "select.strategy": "cfs"},
    ]
    assert list(variants(strategies=["random"], compare=rows)) == ["random", "half"]


def test_a_strategy_that_would_keep_the_whole_pool_keeps_half(variants):
    found = variants(strategies=["random", "dedup"], select={"strategy": "dedup", "fraction": 1.0})
    assert {label: row.select.fraction for label, row in found.items()} == {"random": 0.5, "dedup": 1.0}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of three selections from a pool of known origins, and what its run was given."""
    folder = tmp_path_factory.mktemp("page")
    buffer = io.BytesIO()
    Image.new("RGB", (8, 16)).save(buffer, "JPEG")
    records = [Record(f"{n:02d}.jpg", -1, -1, "pool", "") for n in range(IMAGES)]
    write_shard(folder / "store", 0, records, lambda record: buffer.getvalue())
    finish_store(folder / "store", 1, "mine", "")
    store = ImageStore(folder / "store")
    rising = np.arange(IMAGES, dtype=float)
    rising[3] = np.nan
    proxies = {role: {"artifact": f"proxy/of-{role}", "weights": 16 * role} for role in ("source", "target")}
    manifest = {"count": 20, "cut": 20.0, "proxies": proxies}
    figures = Diagnosis(40, 0.9, 0.01, 1e-5, 0.74, 0.998, rank_direction=0.996)
    found = [
        Selection("cfs", "cfs", "select/1", manifest, rising, figures),
        Selection("turned <over>", "target_similarity", "select/2", {**manifest, "count": 10}, -rising),
        Selection("random", "random", "select/3", {**manifest, "proxies": {}}, np.random.default_rng(0).random(IMAGES)),
    ]
    origins = pa.table({"key": store.keys.tolist(), "origin": ["far"] * 30 + ["near"] * 10})
    sources = [SimpleNamespace(dataset=dataset, root=root) for dataset, root in [("folder", "crops"), ("mine", None)]]
    experiment = SimpleNamespace(name="mine", pool=sources[0], target=sources[1])
    run = RecordedRun()
    page = selection_report._page(experiment, store, found, Provenance(lambda: origins, "near"), run)
    return page.html(), run


def test_the_page_shows_every_selection_and_their_agreement(page):
    html, run = page
    assert run.values["rank_correlation.cfs.turned__over_"] == pytest.approx(-1)
    assert abs(run.values["rank_correlation.cfs.random"]) < 0.5
    titles = [axes.get_title(loc="left") for axes in run.drawn["figures/selections/agreement.png"].axes]
    assert titles == ["rank correlation", *(f"Jaccard at {part}%" for part in (10, 25, 50, 75))]
    parts = {"highest", "median", "lowest"}
    expected = {
        f"figures/selections/{name}_{part}.png" for name in ("cfs", "turned__over_", "random") for part in parts
    }
    expected |= {f"figures/selections/{name}.png" for name in ("cfs_histogram", "turned__over__histogram")}
    assert set(run.drawn) == expected | {f"figures/selections/{name}.png" for name in ("agreement", "keep_rates")}
    assert html.count("<img ") == len(run.drawn) and "turned &lt;over&gt;" in html
    [text] = [text.get_text() for text in run.drawn["figures/selections/cfs_histogram.png"].axes[0].texts]
    assert "20.000" in text


def test_the_page_says_what_is_kept_of_each_origin(page):
    html, run = page
    assert run.values["auc.cfs.near"] == 1.0 and run.values["auc.turned__over_.near"] == 0.0
    assert "<tr><td>cfs</td><td>0.000</td><td>1.000</td></tr>" in html  # far, near
    assert "<tr><th>kept at 25%</th><th>far</th><th>near</th></tr>" in html
    assert "<tr><td>cfs</td><td>0.0%</td><td>100.0%</td></tr>" in html
    assert "<tr><td>cfs</td><td>33.3%</td><td>100.0%</td></tr>" in html  # half of 40: ten near, ten of thirty far


def test_the_page_says_what_was_compared(page):
    html, _ = page
    assert "<tr><td>dataset</td><td>folder crops</td></tr>" in html and "<td>mine</td>" in html
    assert (
        "<td>turned &lt;over&gt;</td><td>target_similarity</td><td>10</td><td>25.0%</td><td>20</td><td>1</td>" in html
    )
    assert "<tr><td>cfs</td><td>target</td><td>proxy/of-target</td><td>targettarget</td></tr>" in html
    assert "<tr><td>random</td><td>source</td>" not in html


def test_the_page_says_what_the_order_of_each_selection_means(page):
    html, run = page
    assert "<td>cfs</td><td>direction</td><td>0.9</td><td>0.01</td><td>0.74</td><td>0.998</td><td>0.996</td>" in html
    assert "cfs: the score is the projection of θs on one direction" in html
    assert "<td>turned &lt;over&gt;</td><td>not known: made by an earlier version</td>" in html
    assert run.tagged == {"score_meaning.cfs": "direction"}
    assert run.values["diagnosis.cfs.rank_direction"] == 0.996


def test_an_export_over_another_one_is_refused_before_ray_is_started(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYREID_ROOT", str(tmp_path / "outputs"))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    (tmp_path / "kept").mkdir()
    held = {"format": "csv", "selections": {"random": {"subset": "select/0"}}}
    (tmp_path / "kept/export.json").write_text(json.dumps(held))
    with pytest.raises(UserError, match="holds another export"):
        selection_report.compare(
            load_experiment(tmp_path / "tiny.yaml"), ["random"], export="csv", export_to=str(tmp_path / "kept")
        )
    assert not (tmp_path / "outputs").exists()
