import pytest
import torch

from rayreid.errors import UserError
from rayreid.models.backbones import build_backbone
from rayreid.models.positions import ambiguity, fit_positions, is_assumed, possible_grids, resize_positions
from rayreid.models.weights import load_weights

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


@pytest.mark.parametrize(("theirs", "wanted"), [((16, 8), (32, 4)), ((16, 8), (8, 16)), ((16, 16), (32, 8))])
def test_a_table_of_as_many_positions_in_another_grid_is_resampled(theirs, wanted):
    table = torch.randn(1, 1 + theirs[0] * theirs[1], 4)
    resized, grid = fit_positions(table, 1, None, wanted, PATCH, "w.pth", strict=True)
    assert grid == theirs and torch.equal(resized, resize_positions(table, theirs, wanted))


def test_the_grid_of_the_backbone_is_assumed_only_where_it_is_one_of_several_or_an_unusual_one():
    assert is_assumed(192, None, (24, 8)) and is_assumed(192, None, (16, 12)) and is_assumed(10, None, (5, 2))
    assert not is_assumed(192, (24, 8), (16, 12)) and not is_assumed(128, None, (16, 8))
    assert not is_assumed(192, None, (12, 16))
    with pytest.raises(UserError, match="cannot tell the grid"):
        fit_positions(torch.randn(1, 193, 4), 1, None, (12, 16), PATCH, "w.pth", strict=True)


def test_the_report_names_a_grid_that_is_assumed(tmp_path):
    options = {"embed_dim": 8, "num_heads": 1, "depth": 1}
    told = []
    for size, other in (((384, 128), (256, 192)), ((256, 128), (256, 128))):
        torch.save(build_backbone("vit_tiny", img_size=size, **options).state_dict(), tmp_path / "w.pth")
        told.append(str(load_weights(build_backbone("vit_tiny", img_size=other, **options), tmp_path / "w.pth")))
    assert "pos_embed assumed to be 16x12 (192 positions are 24x8 or 16x12 patches" in told[0]
    assert "assumed" not in told[1]
