import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from rayreid.console import Screen
from rayreid.errors import UserError
from rayreid.pipeline.seed_groups import baseline_of, grouped, parent_metrics, show_groups
from rayreid.pipeline.summary import Row
from rayreid.storage.artifacts import Artifact

QUERIES = 200


def evaluated(root, target, precision) -> dict[str, Artifact]:
    """The graph of a finished experiment, as far as it is read; every evaluation has its queries in another order."""
    store = Artifact(root, "ingest", 1, {"target": target})
    metrics = Artifact(root, "evaluate", 1, {"precision": precision.tolist()}, {"target": store})
    metrics.path.mkdir(parents=True)
    order = np.random.default_rng(len(list(root.rglob("queries.parquet")))).permutation(QUERIES)
    table = {"key": pa.array([f"{i:04d}.jpg" for i in order]), "average_precision": pa.array(precision[order])}
    pq.write_table(pa.table(table), metrics.path / "queries.parquet")
    return {"target": store, "metrics": metrics}


@pytest.fixture
def runs(tmp_path):
    """Outcomes, labels and graphs of rows with a known gain: {row: gain}, over some seeds."""

    def make(gains, seeds=(0, 1, 2), targets=None):
        rng = np.random.default_rng(0)
        base = rng.uniform(0, 0.6, QUERIES)
        results, labels, plans = [], {}, {}
        for seed in seeds:
            for row, gain in gains.items():
                precision = base + gain + 0.002 * seed + 0.01 * rng.standard_normal(QUERIES)
                label = f"{row} · seed {seed}"
                scores = {"mAP": float(precision.mean()), "rank1": 0.5, "mINP": 0.1}
                leak = 3 if row == "leaky" else 0
                steps = 0 if row == "none" else 630
                budget = "none" if row == "none" else "steps=630"
                results.append(Row(label, "mine", 10, steps, 60.0, 0.0, scores, None, (), leak, budget, seed))
                labels[label] = row
                plans[label] = evaluated(tmp_path, (targets or {}).get(row, "mine"), precision)
        return results, labels, plans

    return make


def test_rows_have_mean_spread_and_a_paired_difference(runs):
    results, labels, plans = runs({"none": 0.0, "half": 0.05, "same": 0.0})
    groups = grouped(results, labels, plans, "none")
    assert [group.label for group in groups] == ["none", "half", "same"]
    values = [run.scores["mAP"] for run in groups[1].runs]
    assert groups[1].mean("mAP") == pytest.approx(np.mean(values))
    assert groups[1].std("mAP") == pytest.approx(np.std(values, ddof=1))
    assert groups[0].gain is None
    assert groups[1].gain.difference == pytest.approx(groups[1].mean("mAP") - groups[0].mean("mAP"))
    assert groups[1].gain.significant and 0.04 < groups[1].gain.low < groups[1].gain.high < 0.06
    assert abs(groups[2].gain.difference) < 0.005


def test_the_baseline_is_the_first_row_or_the_one_that_is_named(runs):
    results, labels, plans = runs({"none": 0.0, "half": 0.05})
    groups = grouped(results, labels, plans, baseline_of(labels.values(), "half"))
    assert groups[1].gain is None and groups[0].gain.difference == pytest.approx(-0.05, abs=0.005)
    assert baseline_of(labels.values(), None) == "none"
    with pytest.raises(UserError, match="--against whole: no row has this label; there are: none, half"):
        baseline_of(labels.values(), "whole")


def test_rows_with_other_targets_are_not_compared(runs):
    results, labels, plans = runs({"none": 0.0, "there": 0.05}, targets={"there": "yours"})
    assert [group.gain for group in grouped(results, labels, plans, "none")] == [None, None]


def test_files_and_mlflow_hold_every_seed_and_the_difference(runs):
    results, labels, plans = runs({"none": 0.0, "random half": 0.05})
    groups = grouped(results, labels, plans, "none")
    bare, half = json.loads(json.dumps([group.content() for group in groups]))
    assert half["label"] == "random half" and half["against"] == "none" and half["confidence"] == 0.95
    assert [run["seed"] for run in half["runs"]] == [0, 1, 2] and half["runs"][1]["label"] == "random half · seed 1"
    assert half["mAP"] == pytest.approx(np.mean([run["mAP"] for run in half["runs"]]))
    assert half["mAP_gain_low"] < half["mAP_gain"] < half["mAP_gain_high"]
    assert half["mAP_std"] > 0 and "pretrain_steps_std" not in half and "mAP_gain" not in bare
    metrics = parent_metrics(groups)
    assert metrics["mAP.random_half"] == half["mAP"] and metrics["mAP_gain_low.random_half"] == half["mAP_gain_low"]
    assert "mAP_gain.none" not in metrics and "images.none" not in metrics


def printed(groups) -> str:
    stream = io.StringIO()
    show_groups(Screen(Console(file=stream, width=200)), groups)
    return stream.getvalue()


def test_the_table_shows_the_spread_the_differences_and_what_rows_share(runs):
    results, labels, plans = runs({"none": 0.0, "half": 0.05, "leaky": 0.0})
    groups = grouped(results, labels, plans, "none")
    shown = printed(groups)
    half = groups[1]
    assert f"{100 * half.mean('mAP'):.1f} ± {100 * half.std('mAP'):.1f}" in shown
    assert "mean ± standard deviation over 3 seeds (0, 1, 2)" in shown
    assert "against none" in shown and "more than chance" in shown and "may be chance" in shown
    assert f"{100 * half.gain.low:+.1f} to {100 * half.gain.high:+.1f}" in shown
    assert "leaky †" in shown and "rows share their steps (630)" in shown


def test_one_seed_shows_no_spread_and_says_what_its_interval_counts(runs):
    results, labels, plans = runs({"none": 0.0, "half": 0.05}, seeds=(4,))
    shown = printed(grouped(results, labels, plans, "none"))
    assert "±" not in shown and "one seed does not show the spread of training" in shown
