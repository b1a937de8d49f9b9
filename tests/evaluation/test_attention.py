import numpy as np
import pytest

from rayreid.evaluation.attention import attention_sheet


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


def test_the_map_lights_up_where_the_head_looks():
    images = [np.full((64, 32, 3), 128, np.uint8)]
    top, bottom = np.zeros((1, 1, 8), np.float32), np.zeros((1, 1, 8), np.float32)
    top[..., :2], bottom[..., -2:] = 0.5, 0.5
    drawn = [pixels(attention_sheet(images, maps, (4, 2))) for maps in (top, bottom)]
    assert drawn[0].shape == drawn[1].shape
    right = drawn[0].shape[1] * 2 // 3  # the head's own cell
    middle = drawn[0].shape[0] // 2
    brightness = [(image[:middle, right:].sum(dtype=float), image[middle:, right:].sum(dtype=float)) for image in drawn]
    assert brightness[0][0] > brightness[1][0] and brightness[0][1] < brightness[1][1]


def test_one_row_per_image_one_column_per_head():
    images = [np.zeros((64, 32, 3), np.uint8), np.zeros((100, 70, 3), np.uint8)]
    figure = attention_sheet(images, np.full((2, 3, 32), 1 / 33), (8, 4), names=["first", "second"])
    (axes,) = figure.axes
    assert len(axes.images) == 2 * (2 + 3)
    titles = [text.get_text() for text in axes.texts[::2]]
    assert titles[0] == "first" and titles[5] == "second" and titles[1:5] == ["mean", "head 1", "head 2", "head 3"]


def test_a_head_that_looks_nowhere_is_drawn():
    assert pixels(attention_sheet([np.zeros((64, 32, 3), np.uint8)], np.zeros((1, 2, 8)), (4, 2))).size


def test_maps_of_another_grid_are_refused():
    with pytest.raises(ValueError, match=r"maps \(1, 2, 8\)"):
        attention_sheet([np.zeros((64, 32, 3), np.uint8)], np.zeros((1, 2, 8)), (4, 4))
