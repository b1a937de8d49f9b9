"""Image features in one Parquet file, which also records the model and the images that they belong to."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayreid import forms
from rayreid.data.store.shards import STORE_COMPRESSION
from rayreid.errors import UserError, one_line
from rayreid.parquet import Kind, read_columns, write_table
from rayreid.state_files import DamagedFileError

FORMAT = "rayreid-features/1"
_HEADER = b"rayreid"
_HEADER_FORM = forms.record({"format": forms.matching(re.escape(FORMAT)), "dimensions": forms.count})
_KINDS: Mapping[str, Kind] = {
    "key": pa.types.is_string,
    "pid": pa.types.is_integer,
    "camid": pa.types.is_integer,
    "split": pa.types.is_string,
    "feature": lambda kind: pa.types.is_fixed_size_list(kind) and pa.types.is_float32(kind.value_type),
}


@dataclass(frozen=True)
class FeatureTable:
    """Features of N images, together with the labels of the images.

    Attributes:
        keys: str objects (N,), unique.
        features: float32 (N, D), the output of the model without normalisation.
        pids: int32 (N,), −1 for unknown or junk.
        camids: int16 (N,), −1 for unknown.
        splits: str objects (N,).
        header: Origin of the features: `weights` (checksum of the weights file), `model` (its path), `images` (path of
            the images) and `dataset`.
    """

    keys: np.ndarray
    features: np.ndarray
    pids: np.ndarray
    camids: np.ndarray
    splits: np.ndarray
    header: dict[str, Any]

    def __len__(self) -> int:
        return len(self.keys)

    def part(self, chosen: np.ndarray) -> "FeatureTable":
        """Return some of the rows, chosen by a mask (N,) bool or by row numbers."""
        keys, features, pids, camids, splits = (
            column[chosen] for column in (self.keys, self.features, self.pids, self.camids, self.splits)
        )
        return FeatureTable(keys, features, pids, camids, splits, self.header)


def write_features(path: Path, table: FeatureTable) -> None:
    """Write features as Parquet in one step.

    The columns are `key pid camid split feature`; the header is stored as the metadata `rayreid`.

    Raises:
        UserError: The file cannot be written.
    """
    width = table.features.shape[1]
    flat = pa.array(np.ascontiguousarray(table.features, np.float32).reshape(-1))
    columns = {
        "key": pa.array(table.keys.tolist(), pa.string()),
        "pid": pa.array(table.pids, pa.int32()),
        "camid": pa.array(table.camids, pa.int16()),
        "split": pa.array(table.splits.tolist(), pa.string()),
        "feature": pa.FixedSizeListArray.from_arrays(flat, width),
    }
    header = {**table.header, "format": FORMAT, "dimensions": width}
    try:
        made = pa.table(columns).replace_schema_metadata({_HEADER: json.dumps(header)})
        write_table(path, made, STORE_COMPRESSION)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error


def read_features(path: Path) -> FeatureTable:
    """Read a file that `write_features` wrote.

    Raises:
        UserError: The file does not exist or was not written by rayreid, or its keys are not unique.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file of features")
    try:
        table = read_columns(path, _KINDS, remedy="predict again")
    except DamagedFileError as error:
        raise UserError(f"{path}: not written by rayreid predict ({error.why}); predict again") from error
    try:
        header = forms.parse((table.schema.metadata or {}).get(_HEADER, b""), _HEADER_FORM)
        features = table["feature"].combine_chunks().flatten().to_numpy().reshape(len(table), header["dimensions"])
    except ValueError as error:
        raise UserError(
            f"{path}: not written by rayreid predict (its metadata do not contain {FORMAT}: {one_line(error)}); "
            "predict again"
        ) from error
    keys = table["key"].to_numpy()
    if len(set(keys)) < len(keys):
        raise UserError(f"{path}: a key occurs more than once; predict again")
    return FeatureTable(
        keys=keys,
        # a copy, because callers may write to it
        features=np.array(features),
        pids=table["pid"].to_numpy(),
        camids=table["camid"].to_numpy(),
        splits=table["split"].to_numpy(),
        header=header,
    )
