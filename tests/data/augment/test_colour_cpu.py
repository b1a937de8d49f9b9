import itertools

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF

from rayreid.data.augment import colour_cpu

FACTORS = {
    "brightness": [0.6, 1.0, 1.4, 0.0, 0.83],
    "contrast": [0.6, 1.0, 1.4, 0.0, 1.21],
    "saturation": [0.8, 1.0, 1.2, 0.0, 1.13],
    "hue": [-0.1, 0.0, 0.1, 0.5, -0.37],
}
THEIRS = [getattr(TF, f"adjust_{name}") for name in FACTORS]
SIZE = (53, 41)  # more than one block of the mean luma, and no whole number of vectors


def images(count):
    """Random (N, 3, H, W) with the awkward pixels: black, white, grey, pure colours, two equal channels."""
    x = torch.rand(count, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    corners = torch.tensor(list(itertools.product((0.0, 0.5, 1.0), repeat=3)))
    x[:, :, :9, :3] = corners.T.reshape(3, 9, 3)
    return x


def flat(x):
    return x.flatten(2).clone().numpy()


def unflat(x):
    return torch.from_numpy(x).unflatten(2, SIZE)


@pytest.mark.parametrize("number, name", enumerate(FACTORS))
def test_operation_is_torchvisions_for_each_images_factor(number, name):
    x = images(5)
    factors = np.ones((5, 4), np.float32)
    factors[:, number] = FACTORS[name]
    got = flat(x)
    colour_cpu.jitter_(got, factors, np.array([[-1, number, -1, -1]] * 5))
    want = torch.stack([THEIRS[number](image, f) for image, f in zip(x, FACTORS[name], strict=True)])
    torch.testing.assert_close(unflat(got), want, atol=1e-5, rtol=0)
    assert (unflat(got)[0] - x[0]).abs().max() > 0.05


def test_jitter_takes_every_image_in_its_own_order():
    order = np.array([*itertools.permutations(range(4)), (-1, -1, -1, -1), (3, -1, -1, 0)])
    x = images(len(order))
    spread = np.random.default_rng(2).uniform(-1, 1, (len(order), 4))
    factors = (spread * (0.4, 0.4, 0.2, 0.1) + (1, 1, 1, 0)).astype(np.float32)
    got = flat(x)
    colour_cpu.jitter_(got, factors, order)
    for number, (image, sequence) in enumerate(zip(x, order, strict=True)):
        for operation in sequence[sequence >= 0]:
            image = THEIRS[operation](image, float(factors[number, operation]))
        torch.testing.assert_close(unflat(got)[number], image, atol=1e-5, rtol=0)


def test_grey_solarized_and_plain_images_are_finished_in_their_places():
    x = images(4)
    x[1, 0, 15:17, 0] = torch.tensor([127 / 255, 128 / 255])
    grey, solarized = np.array([False, False, True, True]), np.array([False, True, False, True])
    mean, scale = np.array([0.1, 0.2, 0.3], np.float32), np.array([2.0, 3.0, 4.0], np.float32)
    place = np.array([4, 0, 3, 1])
    out = np.full((5, 3, SIZE[0] * SIZE[1]), 9.0, np.float32)
    made = flat(x)
    colour_cpu.grayscale_(made, grey)
    colour_cpu.finish(made, grey, solarized, mean, scale, place, out)
    for number, image in enumerate(x):
        image = TF.rgb_to_grayscale(image, 3) if grey[number] else image
        image = TF.solarize(image, 128 / 255) if solarized[number] else image
        want = (image - torch.from_numpy(mean)[:, None, None]) * torch.from_numpy(scale)[:, None, None]
        got = unflat(out)[place[number]]
        near = (TF.rgb_to_grayscale(x[number]) - 128 / 255).abs() < 1e-6  # either side of the threshold is right
        torch.testing.assert_close(got.where(~near, want), want, atol=1e-5, rtol=0)
    assert (out[2] == 9).all()
    values = unflat(out)[0, 0, 15:17, 0] / 2 + 0.1
    torch.testing.assert_close(values, torch.tensor([127 / 255, 127 / 255]))
