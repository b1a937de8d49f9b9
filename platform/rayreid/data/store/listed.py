"""Images of a dataset where they lie: for looking at what is not ingested, with the face of an image store."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayreid.data.datasets import Dataset
from rayreid.data.images import BadImageError
from rayreid.data.jpeg import decode_image
from rayreid.data.store.shards import Record, is_of_one_image
from rayreid.errors import UserError


class Images(Protocol):
    """Images that a pass goes over, by row: an `ImageStore`, or a dataset's own files."""

    def encoded(self, row: int) -> Any:
        """The original file's bytes."""
        ...

    def keys_of(self, rows: npt.ArrayLike) -> pa.Array:
        """The keys of rows, as an Arrow array of strings."""
        ...


class ListedImages:
    """A dataset's images, listed once and read where they lie; nothing is copied.

    It can be pickled, and then carries its listing: for more than some million images, ingest them.

    Args:
        dataset: What lists and reads them.

    Attributes:
        keys: str objects (N,), ascending.
        pids: int32 (N,), −1 unknown or junk.
        camids: int16 (N,), −1 unknown.
        splits: str objects (N,).
        rejected: {key or path: reason} of what gives no image: what the dataset leaves aside, keys that came before.

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
        """Return the original file's bytes of an image.

        Raises:
            BadImageError: This file cannot be read.
            UserError: The storage does not answer.
        """
        record = self._records[row]
        try:
            return self._dataset.read(record)
        except OSError as error:
            if is_of_one_image(error):
                raise BadImageError("unreadable", error.strerror or str(error)) from error
            raise UserError(f"{record.path}: the storage does not answer ({error.strerror or error})") from error

    def keys_of(self, rows: npt.ArrayLike) -> pa.Array:
        """Return the keys of rows as an Arrow array of strings."""
        return pa.array(self.keys[np.asarray(rows, np.int64)].tolist(), pa.string())

    def rows_of_keys(self, keys: Sequence[str]) -> np.ndarray:
        """Return the rows of keys, int64, in the order asked.

        Raises:
            UserError: There is no image of some key.
        """
        wanted = np.array(keys, object)
        rows = np.searchsorted(self.keys, wanted).clip(max=len(self) - 1)
        absent = wanted[self.keys[rows] != wanted]
        if len(absent):
            raise UserError(
                f"dataset {self._dataset.name}: no image {absent[0]!r} there ({len(absent)} keys are missing)"
            )
        return rows

    def image(self, row: int) -> np.ndarray:
        """Return an image, uint8 (H, W, 3).

        Raises:
            UserError: It cannot be read or decoded.
        """
        try:
            return decode_image(self.encoded(row))
        except ValueError as error:
            raise UserError(f"image {self.keys[row]!r} is {error}") from error
