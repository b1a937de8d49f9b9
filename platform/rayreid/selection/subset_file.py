"""The file of a subset: *select* writes it, and the trainings on the subset read it."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from rayreid.data.store.store import ImageStore
from rayreid.parquet import read_columns, write_table
from rayreid.state_files import remake

SUBSET = "subset.parquet"


def write_subset(folder: Path, keys: np.ndarray, priority: np.ndarray) -> None:
    """Write the chosen images' keys and priorities, (n,) each."""
    columns = {"key": pa.array(keys.tolist(), pa.string()), "priority": pa.array(priority)}
    write_table(folder / SUBSET, pa.table(columns))


def subset_rows(store: ImageStore, folder: Path) -> np.ndarray:
    """Return the index rows of a subset's images, int64 ascending."""
    table = read_columns(folder / SUBSET, {"key": pa.types.is_string}, remedy=remake(folder))
    return np.sort(store.rows_of_keys(table["key"].to_pylist()))
