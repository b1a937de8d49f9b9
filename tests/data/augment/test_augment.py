import numpy as np
import pytest
import torch
from PIL import Image

from rayreid.data.augment import augment, reid_transforms
from rayreid.data.augment.augment import IMAGENET_MEAN, IMAGENET_STD, MultiCrop, ReIDTest, ReIDTrain
from rayreid.data.batch import ImageBatch

HALF = (0.5, 0.5, 0.5)
SMALL = {"global_size": (32, 16), "local_size": (16, 8), "local_crops": 3}


def pictures(count, sizes=((128, 64),), seed=0):
    """Smooth coloured images with all values well inside (0, 255)."""
    rng = np.random.default_rng(seed)
    images = []
    for number in range(count):
        height, width = sizes[number % len(sizes)]
        coarse = Image.fromarray(rng.integers(30, 225, (6, 4, 3), dtype=np.uint8))
        images.append(np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR)))
    return images


def keys(count):
    return [f"image{number}" for number in range(count)]


def unit(crops, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    return crops * torch.tensor(std).view(1, 3, 1, 1) + torch.tensor(mean).view(1, 3, 1, 1)


def test_shapes_and_order():
    batch = ImageBatch.collate(pictures(5, ((128, 64), (90, 50))))
    crops = MultiCrop(**SMALL)(batch, keys(5), epoch=0, seed=0)
    assert [tuple(c.shape) for c in crops] == [(10, 3, 32, 16), (15, 3, 16, 8)]
    assert all(c.dtype == torch.float32 and c.is_contiguous() for c in crops)
    only = MultiCrop(**SMALL | {"local_crops": 0})(batch, keys(5), epoch=0, seed=0)
    assert len(only) == 1
    torch.testing.assert_close(only[0], crops[0])


def test_same_key_same_crops_in_another_batch():
    images = pictures(6, ((128, 64), (90, 50), (60, 61)))
    names = keys(6)
    transform = MultiCrop(**SMALL)
    whole = transform(ImageBatch.collate(images), names, epoch=3, seed=1)
    some = [4, 1, 2]
    part = transform(ImageBatch.collate([images[i] for i in some]), [names[i] for i in some], epoch=3, seed=1)
    for a, b, n in zip(whole, part, (2, 3), strict=True):
        a, b = a.unflatten(0, (n, 6)), b.unflatten(0, (n, 3))
        torch.testing.assert_close(b, a[:, some], atol=1e-4, rtol=0)
        assert not torch.allclose(a[0], a[1], atol=0.1)
    for other in ({"epoch": 4, "seed": 1}, {"epoch": 3, "seed": 2}):
        again = transform(ImageBatch.collate(images), names, **other)
        assert all((x - y).flatten(1).abs().amax(1).min() > 0.05 for x, y in zip(whole, again, strict=True))


OFF = {"flip": 0.0, "jitter_probability": 0.0, "gray": 0.0, "blur": (0.0, 0.0, 0.0), "solarize": 0.0}
WHOLE = {
    "global_scale": (1.0, 1.0),
    "local_scale": (1.0, 1.0),
    "global_size": (32, 32),
    "local_size": (16, 16),
}


@pytest.mark.parametrize(
    "option, default, shares",
    [
        ("flip", 0.5, (0.5, 0.5, 0.5)),
        ("jitter_probability", 0.8, (0.8, 0.8, 0.8)),
        ("gray", 0.2, (0.2, 0.2, 0.2)),
        ("blur", (1.0, 0.1, 0.5), (1.0, 0.1, 0.5)),
        ("solarize", 0.2, (0.0, 0.2, 0.0)),
    ],
)
def test_each_operation_meets_its_share_of_each_kind_of_crop(option, default, shares):
    """With only one operation on, it is seen as a difference to none; the defaults are the published ones."""
    count = 400
    batch = ImageBatch.collate(pictures(count, ((32, 32),)))
    assert MultiCrop().__dict__[option] == pytest.approx(
        np.array([*default[:2], *[default[2]] * 8]) if option == "blur" else
        np.array([0, default] + [0] * 8) if option == "solarize" else default
    )  # fmt: skip
    plain = MultiCrop(**OFF, **WHOLE, local_crops=1)(batch, keys(count), 0, 0)
    one = MultiCrop(**OFF | {option: default}, **WHOLE, local_crops=1, blur_radius=(1.0, 2.0))(batch, keys(count), 0, 0)
    plain, one = ([*crops[0].chunk(2), crops[1]] for crops in (plain, one))
    for before, after, share in zip(plain, one, shares, strict=True):
        changed = (before - after).abs().flatten(1).amax(1) > 0.02
        assert changed.float().mean().item() == pytest.approx(share, abs=0.07 if 0 < share < 1 else 0.0)
        if option == "flip":
            torch.testing.assert_close(after[changed], before[changed].flip(3), atol=1e-4, rtol=0)
        if option == "gray":
            grey = unit(after[changed])
            torch.testing.assert_close(grey[:, 0], grey[:, 2], atol=1e-4, rtol=0)


def test_values_stay_in_range_and_are_normalised():
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 2, (64, 32, 3), dtype=np.uint8) * 255 for _ in range(16)]  # bicubic overshoots here
    for crops in MultiCrop(**SMALL)(ImageBatch.collate(noise), keys(16), 0, 0):
        values = unit(crops)
        assert values.min() >= -1e-5
        assert values.max() <= 1 + 1e-5
    flat = [np.full((64, 32, 3), 128, np.uint8)] * 4
    for crops in MultiCrop(**SMALL, **OFF)(ImageBatch.collate(flat), keys(4), 0, 0):
        want = (128 / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
        torch.testing.assert_close(crops, want.view(1, 3, 1, 1).expand_as(crops), atol=1e-4, rtol=0)


def test_mean_and_spread_match_the_per_image_pipeline():
    """Statistics over many crops of DINO's transform written with torchvision and Pillow, image by image."""
    from PIL import ImageFilter, ImageOps
    from torchvision import transforms as T

    images = pictures(150)
    size, rng = (32, 16), np.random.default_rng(0)
    torch.manual_seed(0)
    resized = T.RandomResizedCrop(size, (0.4, 1.0), interpolation=T.InterpolationMode.BICUBIC)
    jitter = T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8)
    rest = T.Compose([T.RandomHorizontalFlip(), jitter, T.RandomGrayscale(0.2)])
    theirs = [[], []]
    for image in images:
        for crop, chance in enumerate((1.0, 0.1)):
            made = rest(resized(Image.fromarray(image)))
            if rng.random() < chance:
                made = made.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
            if crop == 1 and rng.random() < 0.2:
                made = ImageOps.solarize(made)
            theirs[crop].append(T.functional.to_tensor(made))
    ours = unit(MultiCrop(**SMALL)(ImageBatch.collate(images), keys(150), 0, 0)[0]).chunk(2)
    for mine, other in zip(ours, map(torch.stack, theirs), strict=True):
        torch.testing.assert_close(mine.mean((0, 2, 3)), other.mean((0, 2, 3)), atol=0.03, rtol=0)
        within, without = mine.std((2, 3)).mean(), other.std((2, 3)).mean()
        assert within.item() == pytest.approx(without.item(), rel=0.1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_reid_test_is_pillows_resize(interpolation):
    images = pictures(3, ((128, 64), (200, 90), (30, 20)))
    got = ReIDTest((64, 32), HALF, (0.25, 0.5, 1.0), interpolation)(ImageBatch.collate(images))
    mode = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    for mine, image in zip(unit(got, HALF, (0.25, 0.5, 1.0)), images, strict=True):
        want = np.asarray(Image.fromarray(image).resize((32, 64), mode), np.float32) / 255
        np.testing.assert_allclose(mine.permute(1, 2, 0), want, atol=1.5 / 255)
    assert got.shape == (3, 3, 64, 32)


def test_reid_train_pads_flips_and_crops():
    count, pad = 200, 1
    images = pictures(count, ((40, 20), (64, 32)))
    batch = ImageBatch.collate(images)
    plain = ReIDTest((40, 20), HALF, HALF, "bicubic")(batch)
    got = ReIDTrain((40, 20), HALF, HALF, erasing=0.0, padding=pad)(batch, keys(count), 0, 0)
    assert got.is_contiguous()
    black = torch.nn.functional.pad(plain, (pad,) * 4, value=-1.0)
    places = [(m, t, x) for m in (0, 1) for t in range(2 * pad + 1) for x in range(2 * pad + 1)]
    both = (black, black.flip(3))
    candidates = torch.stack([both[m][:, :, t : t + 40, x : x + 20] for m, t, x in places])
    matches = (candidates - got).abs().amax((2, 3, 4)) < 1e-4
    assert (matches.sum(0) == 1).all()  # every image is one of the possible crops …
    assert matches.any(1).all()  # … and every one of them is met
    mirrored = ReIDTrain((40, 20), HALF, HALF, erasing=0.0, padding=0)(batch, keys(count), 0, 0)
    share = (mirrored - plain).abs().flatten(1).amax(1).gt(1e-3).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.07)


def erased_boxes(option, count=500):
    batch = ImageBatch.collate(pictures(count, ((64, 32),)))
    options = {"padding": 0, "flip": 0.0}
    plain = ReIDTrain((64, 32), HALF, HALF, erasing=0.0, **options)(batch, keys(count), 0, 0)
    got = ReIDTrain((64, 32), HALF, HALF, **options, **option)(batch, keys(count), 0, 0)
    changed = (plain != got).any(1)
    boxes = []
    for number in changed.flatten(1).any(1).nonzero()[:, 0].tolist():
        ys, xs = changed[number].nonzero().T
        box = got[number, :, ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        assert box[0].numel() == len(ys)  # one full rectangle
        boxes.append(box)
    return boxes, got


def test_random_erasing_is_timms():
    boxes, _ = erased_boxes({})
    assert len(boxes) / 500 == pytest.approx(0.5, abs=0.07)
    area = np.array([b[0].numel() for b in boxes]) / (64 * 32)
    aspect = np.array([b.shape[1] / b.shape[2] for b in boxes])
    assert area.min() > 0.01
    assert area.max() < 0.35
    assert 0.25 < aspect.min() < 0.5
    assert 2.5 < aspect.max() < 4.0

    from timm.data.random_erasing import RandomErasing

    torch.manual_seed(0)
    erase = RandomErasing(probability=1.0, mode="pixel", device="cpu")
    timms = (erase(torch.full((2000, 3, 64, 32), 9.0)) != 9.0)[:, 0]
    assert area.mean() == pytest.approx(timms.float().mean((1, 2)).mean().item(), rel=0.1)
    heights = timms.any(2).sum(1).float().mean().item()
    assert np.mean([b.shape[1] for b in boxes]) == pytest.approx(heights, rel=0.1)
    noise = torch.cat([b.flatten() for b in boxes])
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert not torch.equal(boxes[0].flatten()[:20], boxes[1].flatten()[:20])


def test_random_erasing_with_a_fixed_fill():
    fill = (0.485, 0.456, 0.406)
    boxes, _ = erased_boxes({"erasing": 1.0, "erasing_area": (0.3, 0.4), "erasing_fill": fill}, 60)
    assert len(boxes) == 60
    for box in boxes:
        torch.testing.assert_close(box, torch.tensor(fill).view(3, 1, 1).expand_as(box))
        assert 0.28 < box[0].numel() / (64 * 32) < 0.42


def test_reid_train_depends_on_the_key_alone():
    images, names = pictures(8), keys(8)
    transform = ReIDTrain((64, 32), HALF, HALF, erasing=1.0)
    whole = transform(ImageBatch.collate(images), names, 2, 7)
    part = transform(ImageBatch.collate(images[5:2:-1]), names[5:2:-1], 2, 7)
    torch.testing.assert_close(part, whole.flip(0)[2:5], atol=1e-4, rtol=0)
    for other in ((3, 7), (2, 8)):
        assert not torch.allclose(transform(ImageBatch.collate(images), names, *other), whole, atol=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("triton", [True, False])
def test_cuda_gives_the_cpus_crops(monkeypatch, triton):
    for room in (augment, reid_transforms):
        monkeypatch.setattr(room, "runs_triton", lambda device: triton and device.type == "cuda")
    batch = ImageBatch.collate(pictures(6, ((128, 64), (90, 50))))
    transform = MultiCrop(**SMALL)
    for a, b in zip(transform(batch, keys(6), 0, 0), transform(batch.to("cuda"), keys(6), 0, 0), strict=True):
        assert b.is_cuda
        torch.testing.assert_close(a, b.cpu(), atol=2e-3, rtol=0)
    train = ReIDTrain((64, 32), HALF, HALF)
    torch.testing.assert_close(
        train(batch, keys(6), 0, 0), train(batch.to("cuda"), keys(6), 0, 0).cpu(), atol=2e-3, rtol=0
    )
