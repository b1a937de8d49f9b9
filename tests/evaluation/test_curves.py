"""Curves over the steps of a run: lines, axes and room for their labels."""

import numpy as np
import pytest

from rayreid.evaluation.curves import SMOOTH_FROM, loss_curves


def test_loss_curves_draw_one_panel_per_key():
    rows = [{"step": 10 * i, "loss": 5.0 - i, "lr": 0.1} for i in range(4)]
    figure = loss_curves(rows, ["loss", "lr"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "lr"]
    (line,) = figure.axes[0].lines
    np.testing.assert_array_equal(line.get_xdata(), [0, 10, 20, 30])
    np.testing.assert_array_equal(line.get_ydata(), [5, 4, 3, 2])


def test_loss_curves_take_columns_and_rows_with_gaps():
    columns = loss_curves({"epoch": [1, 2], "loss": [3.0, 2.0]}, ["loss"], x="epoch")
    np.testing.assert_array_equal(columns.axes[0].lines[0].get_xdata(), [1, 2])
    assert columns.axes[0].get_xlabel() == "epoch"
    rows = [{"step": 0, "loss": 3.0}, {"step": 1, "mAP": 0.5}, {"step": 2, "loss": 1.0}]
    line = loss_curves(rows, ["loss"]).axes[0].lines[0]
    np.testing.assert_array_equal(line.get_xdata(), [0, 2])


def test_long_curves_are_smoothed_without_a_shift():
    n = 4 * SMOOTH_FROM
    ramp = np.arange(n, dtype=float)
    raw, smooth = loss_curves({"loss": ramp}, ["loss"]).axes[0].lines
    np.testing.assert_allclose(smooth.get_ydata(), ramp, atol=1e-9)
    noisy = ramp + np.where(np.arange(n) % 2, 5, -5)
    raw, smooth = loss_curves({"loss": noisy}, ["loss"]).axes[0].lines
    assert raw.get_alpha() < 1
    assert np.abs(smooth.get_ydata() - ramp)[10:-10].max() < 1.5


@pytest.mark.parametrize("value", [0.04, -3.0, 0.0])
def test_a_constant_looks_constant(value):
    noise = value * 1e-16 * np.arange(SMOOTH_FROM + 1)
    (axes,) = loss_curves({"weight_decay": value + noise}, ["weight_decay"]).axes
    low, high = axes.get_ylim()
    assert low < value < high and high - low >= 0.1 * abs(value)


def test_the_panels_of_curves_leave_room_for_their_labels():
    scales = {"lr": 6.25e-5, "tiny": 3e-8, "negative": -0.00087, "grad_norm": 812_345.0, "big": 2.5e6, "momentum": 1.0}
    cases = [(list(scales), 100), (["lr"], 15_000), (["negative", "big", "lr", "tiny"], 150_000)]
    for keys, each in cases:
        values = ({key: i / 7 * scale for key, scale in scales.items()} for i in range(8))
        rows = [{"step": each * i, **row, "momentum": 1 - 3e-7 * i / 7} for i, row in enumerate(values)]
        figure = loss_curves(rows, keys)
        figure.canvas.draw()
        boxes = [axes.get_tightbbox() for axes in figure.axes]
        assert all(box.x0 > 0 and box.y0 > 0 for box in boxes)
        assert all(box.x1 < figure.bbox.width and box.y1 < figure.bbox.height for box in boxes)
        assert not [i for i, box in enumerate(boxes) if box.count_overlaps(boxes) > 1]
        for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
            labels = [label.get_text() for label in axis.get_ticklabels()]
            assert len(set(labels)) == len(labels) and axis.get_offset_text().get_text() == ""


def test_each_tick_of_a_curve_is_a_number_without_a_common_factor():
    figure = loss_curves({"step": [0, 1], "lr": [0, 6e-5], "loss": [2.5, 8e11]}, ["lr", "loss"])
    figure.canvas.draw()
    ticks = [[label.get_text() for label in axes.get_yticklabels()] for axes in figure.axes]
    assert {"0", "2e−5", "6e−5"} <= set(ticks[0]) and {"0", "8e11"} <= set(ticks[1])
