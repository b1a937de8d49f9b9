import numpy as np
import pytest
from outcomes_of import outcome

from rayreid.evaluation.outcomes import curves, grouped
from rayreid.evaluation.published import HALF_CLAIM
from rayreid.evaluation.sweep_figures import cost_figure, fraction_curves

OUTCOMES = [
    *(outcome("cfs", 0.5, seed, mAP) for seed, mAP in enumerate((0.4, 0.5))),
    *(outcome("random", 0.5, seed, mAP) for seed, mAP in enumerate((0.2, 0.3))),
    *(outcome("none", 1.0, seed, mAP) for seed, mAP in enumerate((0.45, 0.55))),
    outcome("none", 0.0, method="none", mAP=0.1),
]


def test_curves_show_means_and_one_standard_deviation_and_the_claim():
    groups = grouped(OUTCOMES)
    figure = fraction_curves(curves(groups), {"no pre-training": groups[-1]})
    left, right = figure.axes
    assert [axes.get_title(loc="left") for axes in (left, right)] == ["mAP", "Rank-1"]
    shown = {container.get_label(): container for container in left.containers}
    assert set(shown) == {"cfs", "random"}
    line, _, (bars,) = shown["cfs"].lines
    np.testing.assert_allclose(line.get_xydata(), [[0.5, 0.45], [1.0, 0.5]])
    spread = 0.1 / np.sqrt(2)
    np.testing.assert_allclose(bars.get_segments()[0], [[0.5, 0.45 - spread], [0.5, 0.45 + spread]])
    assert left.texts[0].get_text() == HALF_CLAIM
    assert [[0.5, 0.5], [1.0, 0.5]] in [line.get_xydata().tolist() for line in left.lines]  # the whole pool's level
    assert [text.get_text() for text in figure.legends[0].texts] == ["no pre-training", "cfs", "random"]


def test_a_single_seed_has_no_spread_and_a_missing_whole_pool_no_level():
    figure = fraction_curves(curves(grouped([outcome(fraction=0.25), outcome(fraction=0.5)])), {})
    (line,) = [line for line in figure.axes[0].lines if len(line.get_xydata()) == 2 and line.get_marker() == "o"]
    assert line.get_xydata().tolist() == [[0.25, 0.5], [0.5, 0.5]]
    assert [0.5, 1.0] not in [list(other.get_xdata()) for other in figure.axes[0].lines]


def test_what_differs_by_a_tenth_does_not_look_like_a_difference():
    close = [outcome(fraction=0.25, mAP=0.5), outcome(fraction=0.5, mAP=0.501)]
    low, high = fraction_curves(curves(grouped(close)), {}).axes[0].get_ylim()
    assert high - low == pytest.approx(0.02) and low + high == pytest.approx(1.001)


def test_costs_are_shown_with_the_front_and_its_names():
    groups = grouped(OUTCOMES)
    figure = cost_figure(groups, "gpu_hours")
    hours, images = figure.axes
    front = next(line for line in hours.lines if line.get_label() == "Pareto front")
    np.testing.assert_allclose(front.get_xydata(), [[1.0, 0.1], [2.0, 0.45], [3.0, 0.5]])
    assert [text.get_text() for text in hours.texts] == ["1", "2", "3"]
    assert hours.get_xlabel() == "GPU-hours" and images.get_xlabel() == "images pre-trained on"
    assert "no GPU" in cost_figure(groups, "hours").axes[0].get_xlabel()


def test_stems_have_a_colour_each_and_equal_images_no_panel():
    figure = cost_figure(grouped([outcome("cfs", 0.5, stem=stem) for stem in ("patchify", "ics")]), "hours")
    (hours,) = figure.axes
    assert "hours" in hours.get_xlabel()
    assert [text.get_text() for text in figure.legends[0].texts] == ["Pareto front", "cfs, patchify", "cfs, ics"]
