"""Tables and figure of benchmarks/evidence.py, from a small ledger."""

import csv
import runpy
from pathlib import Path

import pytest

from rayreid.pipeline.ledger import COLUMNS

evidence = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "evidence.py"))


def line(experiment, row, seed, score, **other):
    values = dict.fromkeys(COLUMNS, "")
    values |= {
        "experiment": experiment,
        "row": row,
        "seed": str(seed),
        "config": f"{row} {seed}",
        "commit": "c0ffee" * 6,
    }
    values |= {"images": "800", "steps": "630", "budget": "steps=630", "machine": "A CPU, 2 cores", "test_images": "0"}
    return values | {"mAP": f"{score:.4f}", "rank1": "0.5000", "mINP": "0.1000", **other}


LINES = [
    line("real", "none", 0, 0.25, images="0", steps="0", budget="none"),
    line("real", "none", 1, 0.26, images="0", steps="0", budget="none"),
    line("real", "none", 2, 0.24, images="0", steps="0", budget="none"),
    line("real", "half | cfs", 0, 0.20),
    line("real", "half | cfs", 0, 0.27, probe_start="0.0600", probe_end="0.1200"),
    line("real", "half | cfs", 1, 0.28, probe_start="0.0700", probe_end="0.1300", warnings="fell"),
    line("real", "half | cfs", 2, 0.28),
    line("once", "none", 0, 0.25),
    line("once", "leaky", 0, 0.30, test_images="4"),
]


@pytest.fixture
def ledger(tmp_path):
    def write(lines=LINES, columns=COLUMNS):
        path = tmp_path / "ledger.csv"
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(lines)
        return str(path)

    return write


def test_a_table_has_mean_spread_and_the_paired_t_interval(ledger, capsys):
    evidence["main"]([ledger(), "--experiment", "real"])
    shown = capsys.readouterr().out
    bare, half = (text for text in shown.splitlines() if text.startswith(("| none", "| half")))
    assert bare == "| none | 3 | 25.0 ± 1.0 | 50.0 ± 0.0 | 10.0 ± 0.0 | – | 0 | none | 0 |  |"
    # differences 0.02, 0.02, 0.04: mean 2.67, s 1.155, t(2) 4.303, half 2.87
    assert half.startswith(r"| half \| cfs | 3 | 27.7 ± 0.6 | ")
    assert "| +2.7 (-0.2 to +5.5) | 800 | steps=630 | 630 | 6.5 → 12.5 |" in half
    assert "7 lines of the ledger, 6 configurations" in shown and "1 older lines of the same row and seed" in shown
    assert "Warnings: half | cfs (seed 1)." in shown and "commit c0ffeec0ff;" in shown and "### once" not in shown


def test_one_seed_has_no_interval_and_test_images_are_marked(ledger, capsys):
    evidence["main"]([ledger(), "--experiment", "on*", "--against", "none"])
    shown = capsys.readouterr().out
    assert "| leaky † | 1 | 30.0 | 50.0 | 10.0 | +5.0 | 800 |" in shown
    assert "† The pool holds test images of the target." in shown


def test_differences_are_taken_of_the_seeds_that_both_have():
    base = {"0": {"mAP": "0.1"}, "1": {"mAP": "0.5"}}
    found = evidence["paired_gain"](base, {"1": {"mAP": "0.6"}, "2": {"mAP": "0.0"}})
    assert (found.mean, found.half, found.seeds) == (pytest.approx(0.1), None, 1)
    assert evidence["paired_gain"](base, {"7": {"mAP": "0.6"}}) is None


def test_the_figure_shows_the_gain_over_random_by_share_and_pool(ledger, tmp_path, capsys):
    drawn = [
        line(f"evidence-drawn-{pool}-{share}", row, seed, 0.3 + gain * (1 - share / 100) + 0.01 * seed)
        for pool in (1600, 6400)
        for share in (50, 15)
        for row, gain in {"random": 0, "cfs": 0.02, "oracle": 0.1}.items()
        for seed in (0, 1, 2)
    ]
    experiments = evidence["by_experiment"]([*drawn, *LINES])
    (axes,) = evidence["gain_figure"](experiments).axes
    curves = {container.get_label(): container[0].get_xydata() for container in axes.containers}
    assert list(curves) == [f"{row}, pool of {pool}" for row in ("oracle", "cfs") for pool in ("1,600", "6,400")]
    assert curves["oracle, pool of 6,400"][:, 0] == pytest.approx([0.15, 0.5], abs=0.01)
    assert curves["oracle, pool of 6,400"][:, 1] == pytest.approx([8.5, 5.0])
    for name in ("gain.svg", "gain.png"):
        evidence["main"]([ledger(drawn), "--figure", str(tmp_path / name)])
        assert (tmp_path / name).stat().st_size > 1000
    first = (tmp_path / "gain.svg").read_bytes()
    evidence["main"]([ledger(drawn), "--figure", str(tmp_path / "gain.svg")])
    assert (tmp_path / "gain.svg").read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "whole"], "no row 'whole' to compare with; there are: none"),
        (["--experiment", "nothing"], "no line of nothing"),
        (["--figure", "gain.svg"], "no experiment evidence-drawn-POOL-SHARE"),
    ],
)
def test_what_the_ledger_lacks_is_said_in_a_line(ledger, arguments, message):
    with pytest.raises(SystemExit, match=message):
        evidence["main"]([ledger(), *arguments])


def test_another_table_is_no_ledger(ledger):
    with pytest.raises(SystemExit, match="no column 'machine'"):
        evidence["main"]([ledger(columns=[name for name in COLUMNS if name != "machine"])])


def test_the_ledger_has_every_column_that_is_needed():
    assert set(evidence["NEEDED"]) <= set(COLUMNS)
