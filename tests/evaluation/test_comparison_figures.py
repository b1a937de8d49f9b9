import numpy as np
import pytest

from rayreid.evaluation.comparison_figures import agreement_matrices, keep_rates, measure_histograms


def test_agreement_writes_every_number_in_its_place():
    values = np.array([[1.0, -0.25], [0.5, np.nan]])
    figure = agreement_matrices({"one": values, "two": values.T}, ["a", "b"])
    first, second = figure.axes
    written = {text.get_position(): text.get_text() for text in first.texts}
    assert written == {(0, 0): "1.00", (1, 0): "-0.25", (0, 1): "0.50", (1, 1): "–"}
    assert {text.get_position(): text.get_text() for text in second.texts}[0, 1] == "-0.25"
    assert [label.get_text() for label in first.get_yticklabels()] == ["a", "b"]


def test_keep_rates_go_from_nothing_to_all():
    figure = keep_rates(
        [0.25, 0.5], {"cfs": {"near": [0.4, 0.8], "far": [0.1, 0.3]}, "random": {"near": [0.2, 0.5], "far": [0.3, 0.5]}}
    )
    [_, near, far] = figure.axes[0].lines
    assert near.get_xdata().tolist() == [0.0, 0.25, 0.5, 1.0] and near.get_ydata().tolist() == [0.0, 0.4, 0.8, 1.0]
    assert far.get_label() == "far" and near.get_color() != far.get_color()
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["cfs", "random"]


def test_measures_of_kept_images_stand_beside_those_of_the_pool():
    heights = np.concatenate([np.full(50, 100.0), np.full(50, 200.0)])
    known = np.where(np.arange(100) < 10, np.nan, np.linspace(0, 1, 100))
    figure = measure_histograms({"height": heights, "sharpness": known}, {"tall": np.arange(50, 100)})
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == ["height", "sharpness"]
    pool, tall = (patch.get_data().values for patch in panels[0].patches)
    assert pool[0] == pool[-1] == 0.5 and tall[-1] == 1 and tall.sum() == 1
    assert panels[1].patches[0].get_data().values.sum() == pytest.approx(1)
