import itertools

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF

from rayreid.data.augment import colour

FACTORS = {
    "brightness": [0.6, 1.0, 1.4, 0.0, 0.83],
    "contrast": [0.6, 1.0, 1.4, 0.0, 1.21],
    "saturation": [0.8, 1.0, 1.2, 0.0, 1.13],
    "hue": [-0.1, 0.0, 0.1, 0.5, -0.37],
}
OURS = dict(zip(FACTORS, colour.JITTER, strict=True))
THEIRS = {name: getattr(TF, f"adjust_{name}") for name in FACTORS}


def images(count=5):
    """Random (N, 3, H, W) with the awkward pixels: black, white, grey, pure colours, two equal channels."""
    x = torch.rand(count, 3, 20, 12, generator=torch.Generator().manual_seed(0))
    corners = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=3)))
    x[:, :, :9, :3] = corners.T.reshape(3, 9, 3)
    return x


def rows(x):
    return x.transpose(1, 2).contiguous()


@pytest.mark.parametrize("name", FACTORS)
def test_operation_is_torchvisions_for_each_images_factor(name):
    x = images()
    got = OURS[name](rows(x), torch.tensor(FACTORS[name])).transpose(1, 2)
    want = torch.stack([THEIRS[name](image, f) for image, f in zip(x, FACTORS[name], strict=True)])
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    assert (got[0] - x[0]).abs().max() > 0.05


def test_grayscale():
    x = images()
    got = colour.grayscale_(rows(x)).transpose(1, 2)
    torch.testing.assert_close(got, TF.rgb_to_grayscale(x, 3), atol=1e-5, rtol=0)


def test_solarize():
    x = images()
    x[0, 0, 15:17, 0] = torch.tensor([127 / 255, 128 / 255])
    got = colour.solarize_(rows(x)).transpose(1, 2)
    torch.testing.assert_close(got, TF.solarize(x, 128 / 255), atol=1e-5, rtol=0)
    assert got[0, 0, 15, 0] == x[0, 0, 15, 0]
    assert got[0, 0, 16, 0] == pytest.approx(127 / 255)


def test_jitter_takes_every_image_in_its_own_order():
    orders = [*itertools.permutations(range(4)), (-1, -1, -1, -1), (3, -1, -1, 0)]
    order = np.array(orders)[np.random.default_rng(0).permutation(len(orders))]
    x = torch.rand(len(order), 3, 10, 6, generator=torch.Generator().manual_seed(1))
    spread = torch.rand(len(order), 4, generator=torch.Generator().manual_seed(2)) * 2 - 1
    factors = spread * torch.tensor([0.4, 0.4, 0.2, 0.1]) + torch.tensor([1.0, 1.0, 1.0, 0.0])
    got = colour.jitter(rows(x), factors, order).transpose(1, 2)
    theirs = list(THEIRS.values())
    for number, (image, sequence) in enumerate(zip(x, order, strict=True)):
        for operation in sequence[sequence >= 0]:
            image = theirs[operation](image, factors[number, operation].item())
        torch.testing.assert_close(got[number], image, atol=1e-5, rtol=0)
