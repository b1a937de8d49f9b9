"""The table of figures on which to decide before a training: its rows, its words, and what MLflow gets of it."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from headless_browser import evaluate, require_browser
from rayreid.config import Score
from rayreid.config.loading import change, load_experiment
from rayreid.evaluation.page import Page
from rayreid.pipeline.compared_selection import Selection
from rayreid.pipeline.graph import plan
from rayreid.pipeline.judgement_table import add_judgements
from rayreid.pipeline.judging import WHOLE, Judged, plan_judging
from rayreid.pipeline.short_trainings import Trained
from rayreid.selection.judgement import Judgement
from rayreid.storage.artifacts import Artifact
from recorded_run import RecordedRun
from small_store import small_store

FRACTIONS = (0.25, 0.5, 0.75)  # a tenth of 12 images is one image, too
HEADS = "document.querySelectorAll('.sorts th button')"
FIRST = "[...document.querySelectorAll('.sorts tbody tr')].map(row => row.cells[%d].textContent)"


@pytest.fixture
def store(tmp_path):
    return small_store(tmp_path / "store")


def selections(store) -> list[Selection]:
    rising = np.arange(len(store), dtype=float)
    return [
        Selection(label, "random", "select/1", {"count": 6, "proxies": {}}, priority)
        for label, priority in (("cfs", rising), ("turned <over>", -rising))
    ]


def figures(coverage: float, rank: float = 12.34) -> Judgement:
    return Judgement(3, coverage, coverage, coverage - 0.1, rank, 0.5, 0.125)


def judged() -> Judged:
    known = {("cfs", f): figures(f, math.nan if f == 0.1 else 10 * f) for f in (0.1, *FRACTIONS)}
    known |= {("turned <over>", f): figures(f / 2) for f in (0.1, *FRACTIONS)}
    return Judged("pretrain/0123456789ab", {**known, (WHOLE, 1.0): figures(0.9)})


@pytest.fixture
def page(store):
    page, run = Page("mine"), RecordedRun()
    groups = {"near": np.arange(12) >= 9, "far": np.arange(12) < 9}
    add_judgements(page, store, selections(store), groups, judged(), run)
    return page.html(), run


def test_there_is_a_line_per_selection_and_fraction_and_one_of_the_whole_pool(page):
    html, _ = page
    assert html.count("<tr><td>cfs</td>") == html.count("<tr><td>turned &lt;over&gt;</td>") == 4
    line = "<td>0.500</td><td>0.500</td><td>0.400</td><td>5.0</td><td>0.500</td><td>12.5%</td>"
    assert f"<tr><td>cfs</td><td>50%</td><td>6</td><td>100.0%</td><td>33.3%</td>{line}</tr>" in html
    assert "<tr><td>all images</td><td>100%</td><td>12</td><td>100.0%</td><td>100.0%</td><td>0.900</td>" in html
    assert "<td>0.100</td><td>0.100</td><td>0.000</td><td>–</td>" in html  # of one image there is no rank
    assert "features of pretrain/0123456789ab" in html


def test_mlflow_gets_what_is_known(page):
    _, run = page
    assert run.values["coverage_p10.cfs.50"] == pytest.approx(0.4)
    assert run.values["coverage_mean.turned__over_.25"] == 0.125
    assert run.values["near_duplicates.all_images.100"] == 0.125
    assert "effective_rank.cfs.10" not in run.values and run.values["effective_rank.cfs.25"] == 2.5


def test_without_features_the_columns_are_absent_and_the_page_says_why(store):
    page, run = Page("mine"), RecordedRun()
    add_judgements(page, store, selections(store), {}, None, run)
    html = page.html()
    assert '<button type="button">images</button></th></tr>' in html and run.values == {}
    assert "No selection here needs a source proxy θs" in html and "Kept:" not in html


def test_a_click_on_a_head_sorts_the_lines(page, tmp_path):
    require_browser()
    (tmp_path / "page.html").write_text(page[0])
    heads = page[0].split("<thead>")[1].split("</thead>")[0].split("</th>")
    rank = next(number for number, head in enumerate(heads) if "effective rank" in head)
    script = (
        f"(() => {{ const found = []; const click = at => {{ {HEADS}[at].click(); }};"
        f"click({rank}); found.push({FIRST % rank}); click({rank}); found.push({FIRST % rank});"
        f"click(0); found.push({FIRST % 0}); return found; }})()"
    )
    largest, smallest, words = evaluate(
        (tmp_path / "page.html").as_uri(), f"{HEADS}.length > 0", script, tmp_path / "b"
    )
    assert largest == ["12.3"] * 5 + ["7.5", "5.0", "2.5", "–"]
    assert smallest == ["2.5", "5.0", "7.5"] + ["12.3"] * 5 + ["–"]
    assert words == [WHOLE] + ["cfs"] * 4 + ["turned <over>"] * 4


def test_a_selection_that_removes_images_has_a_line_of_the_whole_pool(store):
    filtered = np.arange(len(store), dtype=float)
    filtered[:4] = np.nan
    page = Page("mine")
    one = Selection("dedup", "dedup", "select/1", {"count": 6, "proxies": {}}, filtered)
    add_judgements(page, store, [one], {}, None, RecordedRun())
    assert "<td>dedup</td><td>75%</td><td>8</td>" in page.html()  # 9 are wanted, 8 are left
    assert "<td>dedup</td><td>100%</td><td>8</td>" in page.html()


def test_short_trainings_are_a_column(store):
    page, run = Page("mine"), RecordedRun()
    probes = {("cfs", 0.5): {"probe_start": 0.061, "probe_end": 0.123}, ("cfs", 0.25): {"probe_end": None}}
    add_judgements(page, store, selections(store), {}, None, run, Trained(40, probes))
    html = page.html()
    assert "probe mAP after 40 steps" in html and "It was 6.1% before the first step." in html
    assert "<td>cfs</td><td>50%</td><td>6</td><td>12.3%</td>" in html
    assert "<td>cfs</td><td>25%</td><td>3</td><td>–</td>" in html
    assert run.values == {"probe_end.cfs.50": 0.123}


def test_the_features_of_the_first_source_proxy_are_planned(tmp_path):
    pool, target, first, second = (Artifact(tmp_path, "x", 1, {"n": number}) for number in range(4))
    stores = {"pool": pool, "target": target}
    rows = {name: SimpleNamespace(score=Score(), seed=3) for name in ("random", "cfs", "other")}
    plans = {"random": stores, "cfs": {**stores, "source_proxy": first}, "other": {**stores, "source_proxy": second}}
    judging = plan_judging(rows, plans)
    assert judging.seed == 3 and [one.inputs["source"] for one in judging.features] == [first, first]
    assert [one.inputs["images"] for one in judging.features] == [pool, target]
    assert plan_judging(rows, {"random": stores}) is None


def test_coverage_is_that_of_all_targets_whose_images_are_given(tiny, tmp_path):
    def drawn(identities: int) -> dict:
        return {"dataset": "synthetic", "options": {"part": "target", "size": [64, 32], "identities": identities}}

    targets = [{"name": "a", **drawn(8)}, {"name": "b", **drawn(9)}, {"name": "c", "proxy": "far.safetensors"}]
    row = load_experiment(tiny(select={"strategy": "target_similarity"}, score={"targets": targets}))
    rows = {"cluster": change(row, {"select.strategy": "cluster"}), "similar": row}
    judging = plan_judging(rows, {label: plan(one, tmp_path) for label, one in rows.items()})
    _, *theirs = judging.features
    assert [one.inputs["images"].fields["source"]["options"]["identities"] for one in theirs] == [8, 9]
    assert [one.inputs["images"] for one in theirs] == [judging.graph["target.a"], judging.graph["target.b"]]

    alone = plan_judging({"cluster": rows["cluster"]}, {"cluster": plan(rows["cluster"], tmp_path)})
    assert [one.inputs["images"].fields["source"]["options"]["identities"] for one in alone.features[1:]] == [10]
