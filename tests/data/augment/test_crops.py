import math

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from rayreid.data.augment.crops import crop_boxes
from rayreid.data.augment.randomness import uniforms


@pytest.mark.parametrize("scale, fallback", [((0.4, 1.0), 1 / 8), ((0.05, 0.4), 0.0)])
def test_boxes_follow_torchvision(scale, fallback):
    draws = uniforms(0, 0, [f"image{number}" for number in range(4000)], 1, 40)[:, 0]
    ours = crop_boxes(draws, np.full(4000, 128), np.full(4000, 64), scale)
    torch.manual_seed(0)
    image = torch.empty(3, 128, 64)
    theirs = np.array([RandomResizedCrop.get_params(image, scale, [3 / 4, 4 / 3]) for _ in range(4000)])
    boxes = np.stack(ours, 1)  # top, left, height, width
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= 128).all()
    assert (boxes[:, 1] + boxes[:, 3] <= 64).all()
    area, aspect = (lambda b: b[:, 2] * b[:, 3]), (lambda b: b[:, 3] / b[:, 2])
    for value in (area, aspect, lambda b: b[:, 0], lambda b: b[:, 1]):
        assert ks_2samp(value(boxes), value(theirs)).pvalue > 1e-3
        assert value(boxes).mean() == pytest.approx(value(theirs).mean(), rel=0.05)
    central = (boxes == (21, 0, 85, 64)).all(1).mean()
    assert central == pytest.approx((theirs == (21, 0, 85, 64)).all(1).mean(), abs=0.03)
    assert central == pytest.approx(fallback, abs=0.02)


def test_fallback_box_of_wide_square_and_narrow_images():
    never = np.ones((3, 40)) - 1e-12
    heights, widths = np.array([10, 50, 100]), np.array([100, 50, 10])
    boxes = crop_boxes(never, heights, widths, (9.0, 9.0))
    np.testing.assert_array_equal(np.stack(boxes, 1), [(0, 43, 10, 13), (0, 0, 50, 50), (43, 0, 13, 10)])


def test_first_valid_try_is_taken():
    draws = np.full((1, 40), 0.5)
    draws[0, 0], draws[0, 4] = (
        1.0,
        0.0,
    )  # first try: the whole area at aspect 1 does not fit; second: 0.4 of it
    boxes = crop_boxes(draws, np.array([128]), np.array([64]), (0.4, 1.0))
    side = round(math.sqrt(0.4 * 128 * 64))
    np.testing.assert_array_equal(np.stack(boxes, 1), [((129 - side) // 2, (65 - side) // 2, side, side)])
