"""The files of an evaluation, read back."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from rayreid.parquet import read_columns
from rayreid.state_files import damaged, read_array, remake

QUERIES = "queries.parquet"
CURVE = "cmc.npy"


def read_queries(folder: Path) -> tuple[list[str], np.ndarray]:
    """Return the keys of an evaluation's queries, and their average precision (Q,), NaN without a true match.

    Raises:
        DamagedFileError: The file is missing or damaged.
    """
    columns = {"key": pa.types.is_string, "average_precision": pa.types.is_floating}
    table = read_columns(folder / QUERIES, columns, remedy=remake(folder))
    keys = table["key"].to_pylist()
    if not keys or len(set(keys)) < len(keys):
        raise damaged(folder / QUERIES, "no query, or one that occurs more than once", remake(folder))
    return keys, table["average_precision"].to_numpy()


def read_curve(folder: Path) -> np.ndarray:
    """Return an evaluation's CMC curve, (ranks,).

    Raises:
        DamagedFileError: The file is missing or damaged.
    """
    return read_array(folder / CURVE, dimensions=1, remedy=remake(folder))
