"""The image store: original image bytes in memory-mapped Arrow shards under one index.

This module reads the store, and re-exports the functions of the two modules that write it:

    for shard, records in enumerate(...):                       # in any order, by any number of workers
        write_shard(directory, shard, records, dataset.read)
    finish_store(directory, shards, dataset.name, dataset.version, dataset.ignored)
    store = ImageStore(directory)
    image = store.image(store.rows_of("train")[0])
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayreid.data.images import UPRIGHT, BadImageError
from rayreid.data.jpeg import decode_images
from rayreid.data.store.image_checksum import checksum_of_image
from rayreid.data.store.index import fingerprint_of, finish_store
from rayreid.data.store.manifest import INDEX, read_index, read_manifest
from rayreid.data.store.mapped_shard import MappedShard
from rayreid.data.store.shard_files import ShardFiles
from rayreid.data.store.shards import INDEX_SCHEMA, Record, digest_of_image, write_shard
from rayreid.errors import UserError
from rayreid.state_files import damaged, remake

__all__ = ["ImageStore", "Record", "finish_store", "write_shard"]


class ImageStore:
    """A complete image store, opened for reading.

    Opening reads only the index and the manifest; a shard is mapped when one of its images is first requested. Rows are
    positions in the index, which is sorted by key. A store can be pickled; the other process then opens it again.

    Args:
        directory: The store's folder.

    Attributes:
        keys: str objects (N,), ascending.
        pids: int32 (N,), −1 for unknown or junk. Identities of different splits may share numbers.
        camids: int16 (N,), −1 for unknown.
        splits: str objects (N,).
        heights: int16 (N,), in pixels, as the images are shown.
        widths: int16 (N,), in pixels, as the images are shown.
        orientations: int8 (N,), EXIF orientation; 1 in a store of format 1, whose images are not turned.
        shards: int32 (N,), the shard of each image.
        rows: int32 (N,), the row of each image within its shard.
        manifest: The manifest that `finish_store` returned.
        fingerprint: Hash of all images and labels.
        files: The files of its shards.

    Raises:
        UserError: There is no store, or it is incomplete or has another format.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory).absolute()
        self.manifest = read_manifest(self.directory)
        self.fingerprint: str = self.manifest["fingerprint"]
        names = [name for name in INDEX_SCHEMA.names if name != "digest"]
        index = self._index = read_index(self.directory, self.manifest, names)
        if index.num_rows != self.manifest["stored"]:
            raise UserError(
                f"{self.directory}: index.parquet has {index.num_rows} images, manifest.json says "
                f"{self.manifest['stored']}; run the ingest again"
            )
        self.pids, self.camids, self.heights, self.widths, self.shards, self.rows = (
            index[name].to_numpy() for name in ("pid", "camid", "height", "width", "shard", "row")
        )
        _check_places(self.directory, self.shards, self.rows, [shard["rows"] for shard in self.manifest["shards"]])
        self.files = ShardFiles(self.directory, self.manifest)
        turned = "orientation" in index.column_names
        self.orientations = index["orientation"].to_numpy() if turned else np.full(len(self.pids), UPRIGHT, np.int8)
        # None if the store was ingested by a version that recorded none
        self._checksums = index["crc32"].to_numpy() if "crc32" in index.column_names else None
        self._mapped = self.files.mapped  # at hand, because each image asks for it

    # As Python objects, the keys of millions of images take a second and hundreds of bytes each: only those who ask for
    # them pay.
    @cached_property
    def keys(self) -> np.ndarray:
        """Return the keys as an object array of str, (N,), ascending."""
        return self._index["key"].to_numpy()

    @cached_property
    def splits(self) -> np.ndarray:
        """Return the splits as an object array of str, (N,)."""
        splits = self._index["split"].combine_chunks().dictionary_encode()
        return splits.dictionary.to_numpy(zero_copy_only=False)[splits.indices.to_numpy()]

    def __len__(self) -> int:
        return len(self.pids)

    def __repr__(self) -> str:
        return f"ImageStore({str(self.directory)!r}: {len(self)} images)"

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageStore, (self.directory,)

    def rows_of(self, split: str) -> np.ndarray:
        """Return the index rows of a split, int64 ascending; empty if the store has no such split."""
        return np.flatnonzero(self.splits == split)

    def rows_of_keys(self, keys: Sequence[str]) -> np.ndarray:
        """Return the index rows of keys, int64, in the order of the keys.

        Raises:
            UserError: A key is not in the store.
        """
        wanted = pa.array(keys, type=pa.string())
        rows = self.find(wanted)
        if rows.null_count:
            missing = wanted.filter(rows.is_null())
            raise UserError(
                f"{self.directory}: the store has no image {missing[0].as_py()!r} ({len(missing)} of "
                f"{len(wanted)} keys are not in it); was the list made from another dataset?"
            )
        return rows.to_numpy().astype(np.int64)

    def find(self, keys: pa.Array) -> pa.Array:
        """Return the index rows of keys (an Arrow array of strings) as an Arrow array; null for a key without image."""
        return pc.index_in(keys, value_set=self._index["key"].combine_chunks())

    def keys_of(self, rows: npt.ArrayLike) -> pa.Array:
        """Return the keys of index rows as an Arrow array of strings, without making Python objects of the others."""
        return self._index["key"].take(pa.array(np.asarray(rows, np.int64))).combine_chunks()

    def encoded(self, row: int) -> memoryview:
        """Return the bytes of the original file of the image in an index row, without copying them.

        Raises:
            UserError: The shard is missing, or the bytes are not those that were ingested.
            IndexError: The store has no such row. Negative ones do not count from the end.
        """
        if not 0 <= row < len(self.pids):
            raise IndexError(f"{self.directory}: there is no row {row}; the rows are 0 to {len(self) - 1}")
        shard = self._shard(int(self.shards[row]))
        place = self.rows[row]
        if not 0 <= place < len(shard.starts):
            return self._from_new_copy(row, shard)
        data = shard.view[shard.starts[place] : shard.ends[place]]
        if self._checksums is not None and checksum_of_image(data) != self._checksums[row]:
            return self._from_new_copy(row, shard)
        return data

    def _from_new_copy(self, row: int, shard: MappedShard) -> memoryview:
        """Return the bytes of an image that a shard does not hold as ingested: a copy of the shard is made again once.

        Raises:
            UserError: The shard is no copy, or was copied again before.
        """
        if self.files.renew(int(self.shards[row]), shard):
            return self.encoded(row)
        place = f"shard {self.shards[row]}, row {self.rows[row]}"
        (key,) = self.keys_of([row]).to_pylist()
        raise UserError(f"{shard.path}: image {key!r} ({place}) is not what was ingested; {self.files.remedy(shard)}")

    @property
    def checked(self) -> bool:
        """Return whether each read compares the image's checksum; stores of earlier versions record none."""
        return self._checksums is not None

    def _shard(self, number: int) -> MappedShard:
        return self._mapped.get(number) or self.files.map(number)

    def batches(self, shard: int) -> Iterator[pa.RecordBatch]:
        """Yield a shard's record batches, with the columns `key` and `image`, memory-mapped and not copied.

        They include images that share their key with an earlier image; the index leaves those out. Their checksums are
        not compared.

        Raises:
            UserError: The shard is missing or damaged.
        """
        file = self._shard(shard).file
        for number in range(file.num_record_batches):
            yield file.get_batch(number)

    def image(self, row: int) -> np.ndarray:
        """Return the image in an index row, uint8 (H, W, 3).

        Raises:
            UserError: The shard is missing, or the image cannot be decoded.
        """
        (image,) = self.images([row])
        return image

    def images(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Return the images in some index rows, uint8 (H, W, 3) each.

        Raises:
            UserError: A shard is missing, or an image cannot be decoded.
        """
        images: list[np.ndarray] = []
        for row, image in zip(rows, self.decoded(rows), strict=True):
            if isinstance(image, BadImageError):
                raise UserError(
                    f"{self.directory}: image {self.keys[row]!r} is {image}; ingest again with verify=decode"
                ) from image
            images.append(image)
        return images

    def decoded(self, rows: Sequence[int]) -> list[np.ndarray | BadImageError]:
        """Return the images in some index rows, uint8 (H, W, 3) each, or the errors of those that are damaged.

        Raises:
            UserError: A shard is missing or damaged.
        """
        return decode_images([self.encoded(row) for row in rows], [int(self.orientations[row]) for row in rows])

    def digests(self) -> pa.Array:
        """Return the hashes of the images' bytes, by index row, as an Arrow array of 16 bytes each.

        Raises:
            UserError: The index cannot be read, or has no hashes (format 1) and a shard is missing or damaged.
        """
        if self.manifest["format"] == 1:
            return pa.array([digest_of_image(self.encoded(row)) for row in range(len(self))], pa.binary(16))
        return read_index(self.directory, self.manifest, ["digest"])["digest"].combine_chunks()

    def verify(self, compared: Callable[[int], None] | None = None) -> None:
        """Compare the index and all shards with the manifest.

        Args:
            compared: Called after every shard with the number of shards compared so far.

        Raises:
            UserError: A shard is missing or its bytes changed, or the labels changed; the message names it.
        """
        self._verify_labels()
        for number, shard in enumerate(self.files, 1):
            shard.verify()
            if compared is not None:
                compared(number)

    def _verify_labels(self) -> None:
        """Compare the fingerprint with the index: a manifest of an earlier version has no checksum of its file."""
        if self.manifest["format"] == 1:  # an index without digests, of which the fingerprint is made
            return
        rows = read_index(self.directory, self.manifest, ["key", "split", "pid", "camid", "digest"])
        if fingerprint_of(rows, self.manifest["dataset"], self.manifest["version"]) != self.fingerprint:
            raise UserError(
                f"{self.directory / INDEX}: the labels are not those that were ingested; restore it from a copy, or "
                "remove the store's folder and ingest again"
            )


def _check_places(directory: Path, shards: np.ndarray, rows: np.ndarray, sizes: Sequence[int]) -> None:
    """Refuse an index whose places are not in the shards."""
    inside = (shards >= 0) & (shards < len(sizes)) & (rows >= 0)
    if not inside.all() or (len(rows) and (rows >= np.array(sizes)[shards]).any()):
        raise damaged(directory / INDEX, "it names places that no shard has", remake(directory))
