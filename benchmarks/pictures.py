"""Random pictures as JPEG files' bytes: smooth enough that their sizes are those of photographs."""

import io

import numpy as np
from PIL import Image


def random_jpegs(count: int, height: int, width: int, seed: int = 0) -> list[bytes]:
    """Return `count` different JPEGs of one size in pixels."""
    rng = np.random.default_rng(seed)
    return [_random_jpeg(rng, height, width) for _ in range(count)]


def _random_jpeg(rng: np.random.Generator, height: int, width: int) -> bytes:
    coarse = rng.integers(0, 256, (max(height // 8, 2), max(width // 8, 2), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = (smooth + rng.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
