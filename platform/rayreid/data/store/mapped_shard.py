"""A shard that is read through a memory map."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from rayreid.data.store.shard_copy import Copy, refuse_too_many_open
from rayreid.errors import UserError, one_line

_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError)
"""What Arrow and NumPy raise for a damaged file: its schema may say anything."""


class DamagedShardError(UserError):
    """An error for a shard whose file is not what Arrow writes."""


class MappedShard:
    """A memory-mapped shard with the start and end of each image's bytes in the file.

    Arrow builds several Python objects for each value that it returns. Two integers per image and one memoryview of the
    whole file make random access some twenty times cheaper.

    Args:
        path: The Arrow file.
        copy: The file as a copy in a cache, which the map keeps on the disk.

    Attributes:
        path: The Arrow file.
        copy: The copy; None if the file is the original.
        renewed: Whether it replaces a copy that was damaged.

    Raises:
        DamagedShardError: The file cannot be understood.
        UserError: The file is missing.
        CacheUnusableError: The copy is on a disk that cannot map files.
    """

    def __init__(self, path: Path, copy: Copy | None = None):
        try:
            whole = pa.memory_map(str(path)).read_buffer() if copy is None else pa.py_buffer(copy.map())
            self.file = pa.ipc.open_file(whole)
            self.starts, self.ends = _bounds(self.file, whole)
        except FileNotFoundError as error:
            raise UserError(f"{path}: the shard is missing; copy it again or run the ingest again") from error
        except _DAMAGE as error:
            refuse_too_many_open(error, path)
            raise DamagedShardError(
                f"{path}: the shard cannot be read ({one_line(error)}); restore it from a copy, or delete it and run "
                "again"
            ) from error
        self.path = path
        self.copy = copy
        self.renewed = False
        self.view = memoryview(whole)


def _bounds(file: pa.ipc.RecordBatchFileReader, whole: pa.Buffer) -> tuple[np.ndarray, np.ndarray]:
    """Return where the bytes of each image start and end in the file, int64 (N,) each."""
    starts, ends = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for number in range(file.num_record_batches):
        images = file.get_batch(number).column("image")
        _, positions, data = images.buffers()
        bounds = np.frombuffer(positions, dtype=np.int32, count=len(images) + 1).astype(np.int64)
        bounds += data.address - whole.address
        starts.append(bounds[:-1])
        ends.append(bounds[1:])
    return np.concatenate(starts), np.concatenate(ends)
