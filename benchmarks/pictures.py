"""Random pictures as JPEG files' bytes: smooth enough that their sizes are those of photographs."""

import io

import numpy as np
from PIL import Image


def random_jpegs(count: int, height: int, width: int, seed: int = 0) -> list[bytes]:
    """Return `count` different JPEGs of one size in pixels."""
    rng = np.random.default_rng(seed)
    return [_random_jpeg(rng, height, width) for _ in range(count)]


def mixed_jpegs(count: int, pixels: int, seed: int = 0) -> list[bytes]:
    """Return `count` JPEGs of `pixels` on average: heights log-normal (σ 0.55), widths 0.35 to 0.5 of them."""
    rng = np.random.default_rng(seed)
    heights = np.exp(0.55 * rng.standard_normal(count))
    shapes = rng.uniform(0.35, 0.5, count)
    scale = (pixels / np.mean(heights**2 * shapes)) ** 0.5
    return [
        _random_jpeg(rng, max(8, round(scale * height)), max(4, round(scale * height * shape)))
        for height, shape in zip(heights, shapes, strict=True)
    ]


def _random_jpeg(rng: np.random.Generator, height: int, width: int) -> bytes:
    coarse = rng.integers(0, 256, (max(height // 8, 2), max(width // 8, 2), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = (smooth + rng.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
