import io

import numpy as np
import pytest
from PIL import Image

from rayreid.evaluation.sprites import SHEET, make_sprites, thumbnail, thumbnail_size


def test_fewer_images_get_larger_thumbnails_within_the_budget():
    assert [thumbnail_size(count) for count in (1, 12_500, 12_501, 22_222, 22_223, 50_000)] == [
        *((128, 64), (128, 64), (96, 48), (96, 48), (64, 32), (64, 32)),
    ]
    assert thumbnail_size(10**6) == (64, 32)


@pytest.mark.parametrize(("shape", "covered"), [((40, 10), (64, 16)), ((10, 40), (8, 32)), ((128, 64), (64, 32))])
def test_an_image_is_fitted_whole_and_in_the_middle(shape, covered):
    found = thumbnail(np.zeros((*shape, 3), np.uint8), (64, 32))
    dark = (found < 100).all(axis=2)
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    assert found.shape == (64, 32, 3) and (len(rows), len(columns)) == covered
    assert rows[0] + rows[-1] == 63 and columns[0] + columns[-1] == 31


def test_an_image_of_one_pixel_width_keeps_a_pixel():
    assert (thumbnail(np.zeros((1000, 1, 3), np.uint8), (64, 32)) < 100).any()


@pytest.mark.parametrize("size", [(128, 64), (96, 48), (64, 32)])
def test_every_thumbnail_lies_where_the_page_looks_for_it(size):
    height, width = size
    across, down = SHEET // width, SHEET // height
    count = across * down + across + 1  # two sheets, the second one with two rows
    levels = np.linspace(0, 255, count).round().astype(np.uint8)
    sprites = make_sprites((np.full((20, 10, 3), level, np.uint8) for level in levels), size)
    sheets = [np.asarray(Image.open(io.BytesIO(sheet))) for sheet in sprites.sheets]
    assert (sprites.across, sprites.down) == (across, down)
    assert [sheet.shape for sheet in sheets] == [(down * height, SHEET, 3), (2 * height, SHEET, 3)]
    for place, level in enumerate(levels):
        sheet, within = divmod(place, across * down)
        row, column = divmod(within, across)
        found = sheets[sheet][row * height : (row + 1) * height, column * width : (column + 1) * width]
        assert abs(float(found[4:-4, 4:-4].mean()) - float(level)) < 3
