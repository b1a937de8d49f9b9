"""Faults planted in a drawn pool, as a crawled pool has them: duplicates, blurred crops, and crops that show nobody.

A curation of the pool can be judged against them: which image has which fault is known, and which image a duplicate
repeats.
"""

import difflib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from rayreid.errors import UserError

NEAR_DUPLICATE, COPY, BLURRED, UNIFORM, BACKDROP = "near_duplicate", "copy", "blurred", "uniform", "backdrop"
KINDS = {
    NEAR_DUPLICATE: "a neighbouring frame of another image of the pool",
    COPY: "the bytes of another image of the pool",
    BLURRED: "an image out of focus",
    UNIFORM: "a plain colour",
    BACKDROP: "what a camera of the target sees without a person",
}
"""The kinds of planted images."""

FRAMES = 8
"""Mean number of images in a track: one image and its near-duplicates."""

_MARGIN = 0.04  # largest share of a side that a neighbouring frame cuts off at either end
_GAIN = 0.08  # largest relative change of its brightness
_QUALITY = (50, 91)  # of its own compression
_RADIUS = (0.05, 0.09)  # of the blur, as a share of the width


@dataclass(frozen=True)
class Planted:
    """A planted image.

    Attributes:
        kind: One of `KINDS`.
        source: Key of the image that it duplicates, which is no planted one; "" for the other kinds.
    """

    kind: str
    source: str = ""


@dataclass(frozen=True)
class Dealt:
    """Which images of a pool are planted.

    Attributes:
        kinds: The kind by the image's number.
        sources: The number of the image that it duplicates, by the image's number.
    """

    kinds: Mapping[int, str]
    sources: Mapping[int, int]


def check_shares(shares: Mapping[str, float] | None) -> dict[str, float]:
    """Return the share of a pool by kind, in the order of `KINDS`.

    Raises:
        UserError: A kind is unknown, a share is out of [0, 1), or they leave nothing of the pool.
    """
    shares = shares or {}
    for kind, share in shares.items():
        if kind not in KINDS:
            near = difflib.get_close_matches(str(kind), KINDS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(f"synthetic: planted has no kind {kind!r}; {hint}Known: {', '.join(KINDS)}")
        number = isinstance(share, int | float) and not isinstance(share, bool) and math.isfinite(share)
        if not number or not 0 <= share < 1:
            raise UserError(f"synthetic: planted.{kind} is {share!r}; give a share of the pool, from 0 to below 1")
    if sum(shares.values()) >= 1:
        raise UserError(f"synthetic: planted adds up to {sum(shares.values()):g} of the pool; give less than 1")
    return {kind: float(shares[kind]) for kind in KINDS if shares.get(kind)}


def deal(rng: np.random.Generator, images: int, shares: Mapping[str, float]) -> Dealt:
    """Return which images of a pool are planted: `round(share · images)` of each kind.

    Near-duplicates form tracks of `FRAMES` images on average, each around one image that is not planted; a copy repeats
    any image that is not planted.

    Args:
        rng: Source of all random choices.
        images: Number of images in the pool.
        shares: Shares by kind, as `check_shares` returns them.

    Raises:
        UserError: No image is left that is not planted.
    """
    counts = {kind: round(share * images) for kind, share in shares.items()}
    if sum(counts.values()) >= images:
        raise UserError(f"synthetic: planted leaves none of {images} images as it is; lower a share")
    order = rng.permutation(images)
    planted, rest = np.split(order, [sum(counts.values())])
    kinds = dict(zip(planted.tolist(), (kind for kind, count in counts.items() for _ in range(count)), strict=True))
    tracks = rest[: max(1, math.ceil(counts.get(NEAR_DUPLICATE, 0) / (FRAMES - 1)))]
    repeated = {NEAR_DUPLICATE: tracks, COPY: rest}
    sources = {image: int(rng.choice(repeated[kind])) for image, kind in kinds.items() if kind in repeated}
    return Dealt(kinds, sources)


def neighbouring_frame(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return an image as a camera sees it a moment later: shifted, nearer, brighter or darker, and recompressed."""
    width, height = image.size
    left, top, right, bottom = rng.uniform(0, _MARGIN, 4) * (width, height, width, height)
    box = (left, top, width - right, height - bottom)
    moved = image.convert("RGB").resize(image.size, Image.Resampling.BICUBIC, box=box)
    gain = rng.uniform(1 - _GAIN, 1 + _GAIN)
    data = io.BytesIO()
    moved.point(lambda value: value * gain).save(data, "JPEG", quality=int(rng.integers(*_QUALITY)))
    return Image.open(data)


def blurred(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return an image out of focus."""
    return image.convert("RGB").filter(ImageFilter.GaussianBlur(rng.uniform(*_RADIUS) * image.width))


def uniform(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return a plain colour with a little noise, width × height pixels."""
    colour, noise = rng.integers(0, 256, 3), rng.uniform(0, 2)
    pixels = colour + noise * rng.standard_normal((height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
