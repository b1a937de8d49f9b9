import pytest
import torch
from torch import nn

from rayreid.errors import UserError
from rayreid.models.norms import IBN, SyncedBatchNorm
from rayreid.models.stems import STEMS


@pytest.mark.parametrize("name", STEMS)
def test_layouts_agree(name):
    torch.manual_seed(0)
    stem = STEMS[name](img_size=(64, 32), embed_dim=8, output_fmt="NHWC", strict_img_size=False).eval()
    assert (stem.grid_size, stem.num_patches, stem.feat_ratio(), stem.feat_ratio(False)) == (
        (4, 2),
        8,
        16,
        (16, 16),
    )
    assert stem.dynamic_feat_size((32, 48)) == (2, 3)
    x = torch.randn(2, 3, 32, 48)
    y = stem(x)
    assert y.shape == (2, 2, 3, 8)
    stem.output_fmt = None
    torch.testing.assert_close(stem(x), y.flatten(1, 2))
    stem.output_fmt = "NCHW"
    torch.testing.assert_close(stem(x), y.permute(0, 3, 1, 2))


@pytest.mark.parametrize("name", STEMS)
def test_a_token_sees_its_own_pixels_in_row_major_order(name):
    torch.manual_seed(0)
    stem = STEMS[name](img_size=(64, 32), embed_dim=8).double().eval()
    x = torch.randn(1, 3, 64, 32, dtype=torch.float64, requires_grad=True)
    stem(x)[0, 5].sum().backward()  # row 2, column 1 of the 4 x 2 grid
    reach = x.grad.abs().sum((0, 1))
    assert (reach[32:48, 16:32] > 0).all()
    if name == "patchify":
        assert reach.count_nonzero() == 16 * 16
    elif name == "conv":
        assert reach[:16].count_nonzero() == 0  # the convolutions look a few pixels further, not a token


def test_patches_are_projected_as_the_convolution_would():
    """The patches are not square, so that rows and columns cannot be swapped unnoticed."""
    torch.manual_seed(0)
    stem = STEMS["patchify"](img_size=(32, 16), patch_size=(8, 4), embed_dim=8).double()
    x = torch.randn(2, 3, 32, 16, dtype=torch.float64)
    torch.testing.assert_close(stem(x), stem.proj(x).flatten(2).transpose(1, 2))


def test_published_layout_of_the_convolutional_stems():
    for name, norm in (("ics", IBN), ("conv", SyncedBatchNorm)):
        stem = STEMS[name](img_size=(64, 32), embed_dim=8)
        assert [type(layer) for layer in stem.conv] == [
            nn.Conv2d, norm, nn.ReLU, nn.Conv2d, norm, nn.ReLU, nn.Conv2d, SyncedBatchNorm, nn.ReLU,
        ]  # fmt: skip
        assert (stem.proj.kernel_size, stem.proj.stride, stem.proj.in_channels) == ((8, 8), (8, 8), 64)


@pytest.mark.parametrize("name", STEMS)
def test_sizes_the_patch_does_not_divide_are_refused(name):
    with pytest.raises(UserError, match=r"250x128.*256x128"):
        STEMS[name](img_size=(250, 128), embed_dim=8)
    stem = STEMS[name](img_size=(64, 32), embed_dim=8, strict_img_size=False)
    with pytest.raises(UserError, match="64x40"):
        stem(torch.zeros(1, 3, 64, 40))


def test_strict_size_is_held():
    stem = STEMS["patchify"](img_size=(64, 32), embed_dim=8)
    with pytest.raises(ValueError, match="64, 32"):
        stem(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match="odd"):
        STEMS["ics"](img_size=(45, 30), patch_size=15, embed_dim=8)
