"""Thumbnails of images as sprite sheets: JPEG files that hold many thumbnails each, side by side."""

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image

SIZES = ((128, 64), (96, 48), (64, 32))
"""Sizes of a thumbnail in pixels (height, width), the largest first."""
BUDGET = 50_000 * 64 * 32
"""Pixels of all thumbnails of a page up to which the larger sizes are used: about 60 MB of a file."""
SHEET = 1024
"""Height and width of a sheet in pixels; a browser decodes one in milliseconds, when it shows a thumbnail of it."""
QUALITY = 70
_MAT = (241, 242, 244)


@dataclass(frozen=True)
class Sprites:
    """Thumbnails on sheets, row by row.

    Attributes:
        height: Height of a thumbnail in pixels.
        width: Its width.
        sheets: JPEG files of `SHEET` × `SHEET` pixels; the last one may be lower.
    """

    height: int
    width: int
    sheets: list[bytes]

    @property
    def across(self) -> int:
        """Return the number of thumbnails in a row of a sheet."""
        return SHEET // self.width

    @property
    def down(self) -> int:
        """Return the number of rows of a full sheet."""
        return SHEET // self.height


def thumbnail_size(count: int) -> tuple[int, int]:
    """Return the height and width in pixels of each of `count` thumbnails: the largest of `SIZES` within `BUDGET`."""
    return next((size for size in SIZES if count * size[0] * size[1] <= BUDGET), SIZES[-1])


def make_sprites(images: Iterable[np.ndarray], size: tuple[int, int]) -> Sprites:
    """Return thumbnails of images, uint8 (H, W, 3) each, of a height and width in pixels."""
    sprites = Sprites(*size, [])
    remaining = (thumbnail(image, size) for image in images)
    while found := list(islice(remaining, sprites.across * sprites.down)):
        sprites.sheets.append(_jpeg(_tiled(found, sprites.across)))
    return sprites


def thumbnail(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return an image (H, W, 3) uint8 fitted whole and undistorted, centred on a pale ground; (height, width, 3)."""
    height, width = size
    scale = min(height / image.shape[0], width / image.shape[1])
    fitted = (max(1, round(scale * image.shape[1])), max(1, round(scale * image.shape[0])))
    small = Image.fromarray(image).resize(fitted, Image.Resampling.BICUBIC, reducing_gap=2.0)
    ground = Image.new("RGB", (width, height), _MAT)
    ground.paste(small, ((width - fitted[0]) // 2, (height - fitted[1]) // 2))
    return np.asarray(ground)


def _tiled(thumbnails: list[np.ndarray], across: int) -> Iterator[np.ndarray]:
    """Yield the rows of a sheet, (height, SHEET, 3) each."""
    height, width, _ = thumbnails[0].shape
    for line in range(math.ceil(len(thumbnails) / across)):
        row = np.full((height, SHEET, 3), _MAT, np.uint8)
        for column, found in enumerate(thumbnails[line * across : (line + 1) * across]):
            row[:, column * width : (column + 1) * width] = found
        yield row


def _jpeg(rows: Iterable[np.ndarray]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.concatenate(list(rows))).save(sink, "JPEG", quality=QUALITY, optimize=True)
    return sink.getvalue()
