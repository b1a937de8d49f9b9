"""Images that Python code hands over: paths, images of Pillow, arrays and tensors, behind the interface of a store."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from PIL import Image

from rayreid.data.images import BadImageError, decode, orientation_of, pixels_of
from rayreid.data.store.listed import ListedImages
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError, escaped
from rayreid.inference.named_inputs import open_images, place

Picture: TypeAlias = str | Path | Image.Image | np.ndarray | torch.Tensor
"""One image: the path of a file, an image of Pillow, an array uint8 (H, W, 3) or grey (H, W), or a tensor uint8
(3, H, W) or grey (1, H, W), as torchvision reads it."""

Pictures: TypeAlias = Picture | Sequence[Picture]
"""A folder of images, an image store, one image, several images in any mixture, an array uint8 (N, H, W, 3), or a
tensor uint8 (N, 3, H, W)."""


class GivenImages:
    """Images in memory or in files, in the order in which they were given, with the interface of an image store.

    Args:
        pictures: The images.

    Attributes:
        keys: str objects (N,): the path of a file as it was given, the position of an image in memory.

    Raises:
        UserError: There is no image, or one is of another kind, type or shape than those of `Picture`.
    """

    def __init__(self, pictures: Sequence[Picture]):
        if not len(pictures):
            raise UserError("no image is given; give at least one")
        for number, picture in enumerate(pictures):
            _check(picture, number)
        self._pictures = pictures
        self.keys = np.array(
            [str(picture) if isinstance(picture, str | Path) else str(i) for i, picture in enumerate(pictures)], object
        )

    def __len__(self) -> int:
        return len(self._pictures)

    def decoded(self, rows: Sequence[int]) -> list[np.ndarray | BadImageError]:
        """Return the images in some rows, uint8 (H, W, 3) each, or the errors of those that cannot be read."""
        found: list[np.ndarray | BadImageError] = []
        for row in rows:
            try:
                found.append(_pixels(self._pictures[row]))
            except BadImageError as error:
                found.append(error)
        return found

    def keys_of(self, rows: npt.ArrayLike) -> pa.Array:
        """Return the keys of rows as an Arrow array of strings."""
        return pa.array(self.keys[np.asarray(rows, np.int64)].tolist(), pa.string())


def open_given(images: Pictures) -> ImageStore | ListedImages | GivenImages:
    """Return images that a caller gives; a folder or an image store is listed, by ascending key.

    Raises:
        UserError: There is no image, or what is given is not an image.
    """
    if isinstance(images, str | Path):
        path = place(str(images))
        if not path.exists():
            raise UserError(f"{escaped(str(images))}: there is no such image file, image folder or image store")
        return GivenImages([images]) if path.is_file() else open_images(str(images))
    if isinstance(images, Image.Image):
        return GivenImages([images])
    if isinstance(images, np.ndarray | torch.Tensor):
        return GivenImages(list(images) if images.ndim == 4 else [images])
    if isinstance(images, Sequence):
        return GivenImages(images)
    raise UserError(f"images: {type(images).__name__} is not an image; give {_KINDS}")


UNREADABLE = "cannot be read"
"""Reason of an image whose file cannot be read."""

_KINDS = "paths, images of Pillow, arrays uint8 (H, W, 3), or tensors uint8 (3, H, W)"


def read_image(path: Path) -> np.ndarray:
    """Return the image in a file, uint8 (H, W, 3), turned by its EXIF orientation.

    Raises:
        BadImageError: The file cannot be read, or is not an image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadImageError(UNREADABLE, error.strerror or str(error)) from None
    return decode(data, orientation_of(data))


def _pixels(picture: Picture) -> np.ndarray:
    if isinstance(picture, str | Path):
        return read_image(place(str(picture)))
    if isinstance(picture, Image.Image):
        return pixels_of(picture)
    if isinstance(picture, torch.Tensor):
        picture = picture.detach().cpu().numpy().transpose(1, 2, 0)
    grey = picture.ndim == 2 or picture.shape[2] == 1
    return np.repeat(picture.reshape(*picture.shape[:2], 1), 3, axis=2) if grey else picture


def _check(picture: object, number: int) -> None:
    """Refuse what is not an image before the first forward pass."""
    name = f"images[{number}]"
    if isinstance(picture, str | Path):
        if not place(str(picture)).is_file():
            raise UserError(f"{name}: there is no such image file: {escaped(str(picture))}")
        return
    if isinstance(picture, Image.Image):
        return
    if not isinstance(picture, np.ndarray | torch.Tensor):
        raise UserError(f"{name}: {type(picture).__name__} is not an image; give {_KINDS}")
    if isinstance(picture, np.ndarray) and picture.dtype.kind in "USO":
        raise UserError(
            f"{name}: an array of {picture.dtype} is not an image; give paths or images as a list, array.tolist()"
        )
    if str(picture.dtype).removeprefix("torch.") != "uint8":
        raise UserError(
            f"{name}: pixels are uint8 in 0 to 255, and these are {picture.dtype}; for pixels in [0, 1], multiply "
            "by 255, round, and convert them"
        )
    shape = tuple(picture.shape)
    array = isinstance(picture, np.ndarray)
    channels = shape[2 if array else 0] if len(shape) == 3 else None
    if not (channels in (1, 3) or (array and len(shape) == 2)) or 0 in shape:
        expected = "(H, W, 3), or grey (H, W)" if array else "(3, H, W), or grey (1, H, W)"
        raise UserError(f"{name}: {'an array' if array else 'a tensor'} of shape {shape} is not an image {expected}")
