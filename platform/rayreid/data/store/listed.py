"""Images of a dataset, read from their original files. They have the interface of an image store and need no ingest."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayreid.data.datasets import Dataset
from rayreid.data.images import BadImageError, orientation_of
from rayreid.data.jpeg import decode_images
from rayreid.data.store.shards import Record, read_or_reason
from rayreid.errors import UserError


class Images(Protocol):
    """Images addressed by row: an `ImageStore`, or the files of a dataset."""

    def decoded(self, rows: Sequence[int]) -> list[np.ndarray | BadImageError]:
        """Return the images in some rows, uint8 (H, W, 3) each, or their errors."""
        ...

    def keys_of(self, rows: npt.ArrayLike) -> pa.Array:
        """Return the keys of rows as an Arrow array of strings."""
        ...


class ListedImages:
    """The images of a dataset, listed once and read from their original files without copying.

    It can be pickled together with its listing; ingest the dataset if it has more than some million images.

    Args:
        dataset: The dataset that lists and reads the images.

    Attributes:
        keys: str objects (N,), ascending.
        pids: int32 (N,), −1 for unknown or junk.
        camids: int16 (N,), −1 for unknown.
        splits: str objects (N,).
        rejected: {key or path: reason} of files without an image here: those that the dataset ignores, and repeated
            keys.

    Raises:
        UserError: The dataset has no image.
    """

    def __init__(self, dataset: Dataset):
        first: dict[str, Record] = {}
        self.rejected: dict[str, str] = {}
        for record in dataset.records():
            if record.key in first:
                self.rejected[record.key] = "duplicate key"
            else:
                first[record.key] = record
        if not first:
            raise UserError(f"dataset {dataset.name} has no image")
        self.rejected.update(dataset.ignored)
        self._dataset = dataset
        self._records = [first[key] for key in sorted(first)]
        self.keys = np.array([record.key for record in self._records], object)
        self.splits = np.array([record.split for record in self._records], object)
        self.pids = np.array([record.pid for record in self._records], np.int32)
        self.camids = np.array([record.camid for record in self._records], np.int16)

    def __len__(self) -> int:
        return len(self._records)

    def encoded(self, row: int) -> bytes:
        """Return the bytes of the original file of an image.

        Raises:
            BadImageError: This file cannot be read.
            UserError: The storage does not answer.
        """
        data = read_or_reason(self._records[row], self._dataset.read)
        if isinstance(data, str):
            raise BadImageError(data)
        return data

    def decoded(self, rows: Sequence[int]) -> list[np.ndarray | BadImageError]:
        """Return the images in some rows, uint8 (H, W, 3) each, or the errors of those that cannot be read or decoded.

        Raises:
            UserError: The storage does not answer.
        """
        encoded: dict[int, bytes] = {}
        found: dict[int, np.ndarray | BadImageError] = {}
        for row in rows:
            try:
                encoded[row] = self.encoded(row)
            except BadImageError as error:
                found[row] = error
        images = decode_images(list(encoded.values()), [orientation_of(data) for data in encoded.values()])
        found.update(zip(encoded, images, strict=True))
        return [found[row] for row in rows]

    def keys_of(self, rows: npt.ArrayLike) -> pa.Array:
        """Return the keys of rows as an Arrow array of strings."""
        return pa.array(self.keys[np.asarray(rows, np.int64)].tolist(), pa.string())

    def rows_of_keys(self, keys: Sequence[str]) -> np.ndarray:
        """Return the rows of keys, int64, in the order of the keys.

        Raises:
            UserError: A key has no image.
        """
        wanted = np.array(keys, object)
        rows = np.searchsorted(self.keys, wanted).clip(max=len(self) - 1)
        absent = wanted[self.keys[rows] != wanted]
        if len(absent):
            raise UserError(
                f"dataset {self._dataset.name}: there is no image {absent[0]!r} ({len(absent)} keys are missing)"
            )
        return rows

    def image(self, row: int) -> np.ndarray:
        """Return an image, uint8 (H, W, 3).

        Raises:
            UserError: The image cannot be read or decoded.
        """
        (image,) = self.decoded([row])
        if isinstance(image, BadImageError):
            raise UserError(f"image {self.keys[row]!r} is {image}") from image
        return image
