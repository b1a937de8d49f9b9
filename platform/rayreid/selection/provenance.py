"""Known origins of pool images, which serve to evaluate a selection and are never used to make one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayreid.data.datasets import NamedDataset, open_dataset
from rayreid.data.datasets.place import Place, is_uri
from rayreid.data.datasets.table_file import TableFile, as_text
from rayreid.data.synthetic.synthetic import ORIGINS
from rayreid.errors import UserError
from rayreid.paths import data_path
from rayreid.selection.meaning import Separation


@dataclass(frozen=True)
class Provenance:
    """The origins of pool images.

    Attributes:
        read: Function that returns a table with the string columns `key` and `origin`.
        relevant: The origin that is the target's own domain.
    """

    read: Callable[[], pa.Table]
    relevant: str

    def origins(self, keys: np.ndarray) -> np.ndarray:
        """Return the origin of each key, (N,); `unknown` for keys that the table does not hold."""
        return np.array(pc.fill_null(self._known(keys), "unknown").to_pylist())

    def judge(self, keys: np.ndarray, priority: np.ndarray) -> Separation | None:
        """Return how well a priority separates the target's own domain from the other origins.

        It is computed over the images that have both a priority and an origin. It is None unless these include the
        target's own domain and another origin.
        """
        found = self.separation(keys, priority)
        if self.relevant not in found:
            return None
        usable = np.isfinite(priority) & self._known(keys).is_valid().to_numpy()
        own = int((self.origins(keys[usable]) == self.relevant).sum())
        return Separation(found[self.relevant], own, int(usable.sum()) - own)

    def separation(self, keys: np.ndarray, priority: np.ndarray) -> dict[str, float]:
        """Return, for each origin, the AUC of a priority for this origin against all others.

        It is computed over the images that have both a priority and an origin. The result is empty if these have fewer
        than two origins.
        """
        # Imported here because workers import this module without calling `separation`, and scikit-learn takes seconds.
        from sklearn.metrics import roc_auc_score

        usable = np.isfinite(priority) & self._known(keys).is_valid().to_numpy()
        origins = self.origins(keys[usable])
        names = np.unique(origins)
        if len(names) < 2:
            return {}
        return {str(name): float(roc_auc_score(origins == name, priority[usable])) for name in names}

    def shares(self, keys: np.ndarray) -> dict[str, float]:
        """Return the fraction of each origin among the given images."""
        names, counts = np.unique(self.origins(keys), return_counts=True)
        return {f"share.{name}": count / len(keys) for name, count in zip(names, counts, strict=True)}

    def groups(self, keys: np.ndarray) -> dict[str, np.ndarray]:
        """Return, for each origin's name, the mask (N,) of the given images that come from it."""
        origins = self.origins(keys)
        return {str(name): origins == name for name in np.unique(origins)}

    def _known(self, keys: np.ndarray) -> pa.ChunkedArray:
        """Return the origin of each key; null for keys that the table does not hold."""
        table = self.read()
        places = pc.index_in(pa.array(keys.tolist(), pa.string()), value_set=table["key"].combine_chunks())
        return table["origin"].take(places)


class Pool(NamedDataset, Protocol):
    """A pool as an experiment file names it, with what the file says about its images' origins."""

    @property
    def provenance(self) -> str | None:
        """Return the path of the table `key,origin`, CSV or Parquet; None if there is none."""

    @property
    def relevant(self) -> str | None:
        """Return the origin that is the target's own domain."""


def provenance_of(source: Pool) -> Provenance | None:
    """Return a pool's provenance, from the file that the configuration names or from a synthetic pool; None if unknown.

    The file is read here, before any stage runs, so that an error in it does not surface after hours of scoring.

    Raises:
        UserError: The file is missing or is no table with the columns `key` and `origin`, or `relevant` is unset
            or names no origin that occurs.
    """
    if source.provenance is not None:
        if source.relevant is None:
            raise UserError("pool.provenance is given: say with pool.relevant which origin is the target's own domain")
        path = data_path(source.provenance)
        if not path.is_file():
            raise UserError(f"{path}: no such file (pool.provenance)")
        root = None if source.root is None or is_uri(source.root) else str(data_path(source.root))
        table = _read(path, root, path.stat().st_mtime_ns)
        _check_relevant(source.relevant, pc.unique(table["origin"]).to_pylist(), str(path))
        return Provenance(lambda: table, source.relevant)
    if source.dataset == "synthetic":
        relevant = source.relevant or ORIGINS[0]
        _check_relevant(relevant, ORIGINS, "dataset synthetic")
        return Provenance(partial(_drawn, source), relevant)
    return None


def planted_of(source: NamedDataset) -> pa.Table | None:
    """Return the images that a drawn pool has planted, for judging a curation; None if it has none, or is not drawn.

    The string columns are `key`, `kind` (`rayreid.data.synthetic.planted.KINDS`) and `source`, the key of the image
    that a duplicate repeats ("" for the other kinds).
    """
    if source.dataset != "synthetic":
        return None
    drawn = open_dataset(source.dataset, source.root, **source.options)
    planted = drawn.planted_images()  # type: ignore[attr-defined]  # only the synthetic dataset has it
    if not planted:
        return None
    rows = [(key, image.kind, image.source) for key, image in planted.items()]
    columns = zip(("key", "kind", "source"), zip(*rows, strict=True), strict=True)
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns})


@lru_cache(maxsize=1)
def _read(path: Path, root: str | None, changed: int) -> pa.Table:
    """Return the file's two columns, with keys written as the pool writes them.

    The file is read once for all rows of an experiment; `changed`, its time of modification in nanoseconds,
    distinguishes versions of it.
    """
    file = TableFile(Place(str(path)), ("key", "origin"), "provenance file")
    if file.columns != ["key", "origin"]:
        raise UserError(f"{path}: the first line of a provenance file names the columns key and origin")
    columns = {name: [as_text(batch.column(name)) for batch in file.batches()] for name in file.columns}
    table = pa.table({name: pa.chunked_array(chunks, pa.string()) for name, chunks in columns.items()}).drop_null()
    if not len(table):
        raise UserError(f"{path}: the provenance file names no image (pool.provenance)")
    keys = [_pool_key(key, root) for key in table["key"].to_pylist()]
    return pa.table({"key": pa.array(keys, pa.string()), "origin": table["origin"]})


def _pool_key(written: str, root: str | None) -> str:
    """Return a key without backslashes, and relative to the pool's root if it is a path below it."""
    key = written.replace("\\", "/")
    return key.removeprefix(f"{root.rstrip('/')}/").lstrip("/") if root and key.startswith("/") else key


def _check_relevant(relevant: str, origins: Sequence[str], source: str) -> None:
    if relevant not in origins:
        known = ", ".join(sorted(origins)[:10]) + (", …" if len(origins) > 10 else "")
        raise UserError(f"pool.relevant is {relevant!r}, which is no origin in {source}; there are: {known}")


def _drawn(source: NamedDataset) -> pa.Table:
    drawn = open_dataset(source.dataset, source.root, **source.options)
    origins = drawn.origins()  # type: ignore[attr-defined]  # only the synthetic dataset has it
    return pa.table({"key": list(origins), "origin": list(origins.values())})
