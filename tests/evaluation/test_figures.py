"""What the figures hold: axes, lines, captions, colours. Looks are judged by eye."""

import inspect
import io
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from rayreid.evaluation.curves import loss_curves
from rayreid.evaluation.image_sheets import image_sheet
from rayreid.evaluation.retrieval_figures import QUERY, RIGHT, WRONG, cmc_curve, ranked_lists
from rayreid.evaluation.score_figures import score_histogram


def image(height=40, width=20, value=100):
    return np.full((height, width, 3), value, np.uint8)


def frames(figure):
    """The colours of the pictures' frames."""
    edges = [patch for patch in figure.axes[0].patches if not patch.get_fill()]
    return [to_hex(edge.get_edgecolor()) if edge.get_visible() else None for edge in edges]


def captions(figure):
    """What is written above the pictures, and below them."""
    texts = [text.get_text() for text in figure.axes[0].texts]
    return texts[::2], texts[1::2]


def fields(figure):
    """The pictures' fields in inches: left, bottom, width, height."""
    return [patch.get_bbox().bounds for patch in figure.axes[0].patches if patch.get_fill()]


def test_cmc_curve_draws_each_report_up_to_the_last_rank():
    figure = cmc_curve({"a": np.linspace(0.5, 1, 50), "b": np.linspace(0.25, 1, 10)}, max_rank=20)
    (axes,) = figure.axes
    assert [len(line.get_xdata()) for line in axes.lines] == [20, 10]
    assert axes.lines[0].get_xdata()[0] == 1
    assert len({line.get_color() for line in axes.lines}) == 2
    captions = [text.get_text() for text in axes.get_legend().get_texts()]
    assert captions == ["a  (50.0 at rank 1)", "b  (25.0 at rank 1)"]


def test_ranked_lists_frame_right_and_wrong():
    figure = ranked_lists(
        [image(), image(90, 30)],
        [[image(), image(50, 50), image()], [image()]],
        [[True, False, True], [False]],
        names=["pid 4", "pid 7"],
        scores=[[0.9, 0.8, 0.7], [0.65]],
    )
    assert frames(figure) == [QUERY, RIGHT, WRONG, RIGHT, QUERY, WRONG]
    above, below = captions(figure)
    assert above == ["pid 4", "1 ✓", "2 ✗", "3 ✓", "pid 7", "1 ✗"]
    assert below == ["", "0.90", "0.80", "0.70", "", "0.65"]


def test_ranked_lists_need_neither_names_nor_scores():
    figure = ranked_lists([image()], [[image()]], [[True]])
    assert captions(figure) == (["query", "1 ✓"], ["", ""])


def test_images_are_whole_and_undistorted():
    figure = image_sheet([image(30, 60), image(100, 20)])
    figure.canvas.draw()
    (axes,) = figure.axes
    assert axes.transData.transform([(0, 0), (1, 1)]).tolist() == [[0, 0], [figure.dpi, figure.dpi]]  # inches
    for drawn, field, (height, width) in zip(axes.images, fields(figure), [(30, 60), (100, 20)], strict=True):
        left, right, bottom, top = drawn.get_extent()
        assert (right - left) / (top - bottom) == pytest.approx(width / height)
        assert field[0] <= left + 1e-9 and right <= field[0] + field[2] + 1e-9
        assert field[1] <= bottom + 1e-9 and top <= field[1] + field[3] + 1e-9
    shown = np.asarray(figure.canvas.buffer_rgba())[::-1, :, :3]
    for field, (height, width) in zip(fields(figure), [(30, 60), (100, 20)], strict=True):
        x, y, across, up = (round(figure.dpi * value) for value in field)
        grey = (shown[y : y + up, x : x + across] == 100).all(axis=2)
        scale = figure.dpi * min(field[2] / width, field[3] / height)
        assert grey.any(axis=0).sum() == pytest.approx(scale * width, abs=2)
        assert grey.any(axis=1).sum() == pytest.approx(scale * height, abs=2)
    sizes = {(round(width, 6), round(height, 6)) for _, _, width, height in fields(figure)}
    assert len(sizes) == 1


def test_image_sheet_captions_and_columns():
    figure = image_sheet([image()] * 5, titles=list("abcde"), columns=3)
    assert captions(figure)[0] == list("abcde")
    places = [(round(left, 3), round(bottom, 3)) for left, bottom, _, _ in fields(figure)]
    columns, rows = sorted({x for x, _ in places}), sorted({y for _, y in places}, reverse=True)
    assert [(rows.index(y), columns.index(x)) for x, y in places] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert frames(figure) == [None] * 5


def test_score_histogram_shows_cut_and_groups():
    scores = np.random.default_rng(0).normal(size=1000)
    figure = score_histogram(
        scores, cut=0.5, groups={"first": np.arange(1000) < 300, "rows": np.array([1, 2, 3])}, label="CFS"
    )
    (axes,) = figure.axes
    assert axes.get_xlabel() == "CFS"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["first (300)", "rows (3)"]
    assert f"{100 * (scores >= 0.5).mean():.0f} % kept" in axes.texts[0].get_text()
    kept = [bar for bar in axes.patches if hasattr(bar, "get_height") and bar.get_alpha() == 0.75]
    assert min(bar.get_x() for bar in kept) == pytest.approx(0.5)
    assert sum(bar.get_height() for bar in kept) == pytest.approx((scores >= 0.5).mean())
    bars = [bar for bar in axes.patches if hasattr(bar, "get_height")]
    assert sum(bar.get_height() for bar in bars) == pytest.approx(1)


def test_score_histogram_alone():
    (axes,) = score_histogram(np.linspace(-1, 1, 50)).axes
    assert axes.get_legend() is None
    assert not axes.texts and not axes.lines


@pytest.mark.parametrize("scores", [np.full(5, 0.3), np.array([0.2])])
def test_score_histogram_of_one_value(scores):
    (axes,) = score_histogram(scores, cut=0.1).axes
    assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(1)


def test_every_figure_saves(tmp_path):
    figures = {
        "loss": loss_curves({"loss": [2.0, 1.0]}, ["loss"]),
        "cmc": cmc_curve({"a": np.ones(20)}),
        "lists": ranked_lists([image()], [[image(), image()]], [[True, False]]),
        "scores": score_histogram(np.arange(9.0), cut=4, groups={"a": [1, 2]}),
        "sheet": image_sheet([image(), image(64, 64)], ["a", "b"]),
    }
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert "matplotlib.pyplot" not in inspect.getsource(sys.modules[loss_curves.__module__])


@pytest.mark.parametrize("to", ["path", "stream", "nothing said"])
def test_a_png_has_the_pixels_that_matplotlib_draws_without_the_alpha_channel(tmp_path, to):
    figure = score_histogram(np.arange(9.0), cut=4)
    figure.canvas.draw()
    drawn = np.asarray(figure.canvas.buffer_rgba())
    sink = tmp_path / "scores.png" if to == "path" else io.BytesIO()
    figure.savefig(sink, **({"format": "png", "pil_kwargs": None} if to == "stream" else {}))
    with Image.open(sink) as written:
        np.testing.assert_array_equal(np.asarray(written), drawn[..., :3])
        assert written.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    assert (drawn[..., 3] == 255).all()


def test_labels_are_text_and_not_formulas(tmp_path):
    cmc_curve({r"$\frac$": np.ones(5), "5 $ of 10 $": np.ones(5)}).savefig(tmp_path / "cmc.png")
    loss_curves([{"step": 1, r"$\frac$": 1.0}, {"step": 2, r"$\frac$": 2.0}], [r"$\frac$"]).savefig(
        tmp_path / "loss.svg"
    )
    assert {path.name for path in tmp_path.iterdir() if path.stat().st_size > 1000} == {"cmc.png", "loss.svg"}
