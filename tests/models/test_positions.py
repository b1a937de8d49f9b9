import pytest
import torch

from rayreid.errors import UserError
from rayreid.models.positions import ambiguity, fit_positions, possible_grids, resize_positions

PATCH = (16, 16)


def test_grids_of_a_number_of_positions():
    grids = {196: (14, 14), 128: (16, 8), 98: (14, 7), 8: (4, 2), 1: (1, 1), 27: (9, 3), 1369: (37, 37)}
    assert {count: possible_grids(count) for count in grids} == {count: [grid] for count, grid in grids.items()}
    assert possible_grids(10) == possible_grids(0) == []
    # the images of ViT-B for re-identification and those of human-centric pre-training
    assert possible_grids(192) == [(24, 8), (16, 12)]
    assert possible_grids(432) == [(36, 12), (24, 18)]


@pytest.mark.parametrize("wanted", [(16, 8), (14, 14)])
def test_a_grid_that_has_two_readings_is_an_error_that_asks_for_the_size(wanted):
    table = torch.randn(1, 193, 4)
    with pytest.raises(
        UserError, match=r"w\.pth: cannot tell .* 24x8 or 16x12 patches \(images of 384x128 or 256x192\); set img_size"
    ):
        fit_positions(table, 1, None, wanted, PATCH, "w.pth", strict=True)
    assert fit_positions(table, 1, None, wanted, PATCH, "w.pth", strict=False) is None


@pytest.mark.parametrize("own", [(24, 8), (16, 12)])
def test_a_grid_that_the_file_or_the_user_states_is_no_question(own):
    table = torch.randn(1, 193, 4)
    resized, grid = fit_positions(table, 1, own, (16, 8), PATCH, "w.pth", strict=True)
    assert grid == own and torch.equal(resized, resize_positions(table, own, (16, 8)))
    assert fit_positions(table, 1, None, own, PATCH, "w.pth", strict=True) is None
    assert fit_positions(table, 1, own, own, PATCH, "w.pth", strict=True) is None
    # a stated grid of another number of positions is not believed
    assert fit_positions(table, 1, (8, 8), own, PATCH, "w.pth", strict=True) is None


def test_a_table_without_a_class_row_is_resampled_whole():
    table = torch.randn(1, 128, 4)
    resized, grid = fit_positions(table, 0, None, (24, 8), PATCH, "w.pth", strict=True)
    assert grid == (16, 8) and resized.shape == (1, 192, 4)
    with_class = torch.cat([torch.randn(1, 1, 4), table], dim=1)
    torch.testing.assert_close(resize_positions(with_class, (16, 8), (24, 8))[:, 1:], resized)


def test_why_a_grid_is_not_known():
    assert ambiguity(10, PATCH) == "10 positions are no square, 4:3, 2:1 or 3:1 grid"
    assert "images of 336x112 or 224x168" in ambiguity(192, (14, 14))
