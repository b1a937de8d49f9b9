"""Where pool images come from, where that is known: for judging a selection, never for making one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from rayreid.data.datasets import NamedDataset, open_source
from rayreid.data.synthetic.synthetic import ORIGINS
from rayreid.errors import UserError, one_line
from rayreid.paths import data_path


@dataclass(frozen=True)
class Provenance:
    """The origin of pool images.

    Attributes:
        read: gives a table with the string columns `key` and `origin`.
        relevant: the origin that is the target's own domain.
    """

    read: Callable[[], pa.Table]
    relevant: str

    def origins(self, keys: np.ndarray) -> np.ndarray:
        """The origin of each key (N,), `unknown` where the table does not say."""
        return np.array(pc.fill_null(self._known(keys), "unknown").to_pylist())

    def judge(self, keys: np.ndarray, priority: np.ndarray) -> dict[str, float]:
        """How well a priority separates the target's own domain from the rest: AUC, over images that have both."""
        known = self.separation(keys, priority)
        return {"auc": known[self.relevant]} if self.relevant in known else {}

    def separation(self, keys: np.ndarray, priority: np.ndarray) -> dict[str, float]:
        """For each origin, the AUC of a priority for it against all others, over images that have both."""
        # Here, not above: workers import this module without ever judging, and scikit-learn takes seconds.
        from sklearn.metrics import roc_auc_score

        usable = np.isfinite(priority) & self._known(keys).is_valid().to_numpy()
        origins = self.origins(keys[usable])
        names = np.unique(origins)
        if len(names) < 2:
            return {}
        return {str(name): float(roc_auc_score(origins == name, priority[usable])) for name in names}

    def shares(self, keys: np.ndarray) -> dict[str, float]:
        """The share of each origin among some images."""
        names, counts = np.unique(self.origins(keys), return_counts=True)
        return {f"share.{name}": count / len(keys) for name, count in zip(names, counts, strict=True)}

    def groups(self, keys: np.ndarray) -> dict[str, np.ndarray]:
        """Which of some images are of each origin: name → mask (N,)."""
        origins = self.origins(keys)
        return {str(name): origins == name for name in np.unique(origins)}

    def _known(self, keys: np.ndarray) -> pa.ChunkedArray:
        """The origin of each key, null where the table does not say."""
        table = self.read()
        places = pc.index_in(pa.array(keys.tolist(), pa.string()), value_set=table["key"].combine_chunks())
        return table["origin"].take(places)


class Pool(NamedDataset, Protocol):
    """A pool as an experiment file names it, with what it says of its images' origins."""

    @property
    def provenance(self) -> str | None:
        """CSV file `key,origin`; None: there is none."""

    @property
    def relevant(self) -> str | None:
        """The origin that is the target's own domain."""


def provenance_of(source: Pool) -> Provenance | None:
    """What is known of a pool: the file that the configuration names, or what a synthetic pool knows of itself.

    The file is read here, ahead of everything, so that what is wrong with it does not come up after hours of scoring.

    Raises:
        UserError: the file is missing or no CSV with the columns `key` and `origin`, or `relevant` is not said or no
            origin that occurs.
    """
    if source.provenance is not None:
        if source.relevant is None:
            raise UserError("pool.provenance is given: say with pool.relevant which origin is the target's own domain")
        path = data_path(source.provenance)
        if not path.is_file():
            raise UserError(f"{path}: no such file (pool.provenance)")
        table = _read(path, path.stat().st_mtime_ns)
        _check_relevant(source.relevant, pc.unique(table["origin"]).to_pylist(), str(path))
        return Provenance(lambda: table, source.relevant)
    if source.dataset == "synthetic":
        relevant = source.relevant or ORIGINS[0]
        _check_relevant(relevant, ORIGINS, "dataset synthetic")
        return Provenance(partial(_drawn, source), relevant)
    return None


@lru_cache(maxsize=1)
def _read(path: Path, changed: int) -> pa.Table:
    """The file's two columns; read once for all rows of an experiment. `changed` tells a new edition of the file."""
    types = {name: pa.string() for name in ("key", "origin")}  # a key such as 0001 is no number
    try:
        options = pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(types))
        table = pyarrow.csv.read_csv(path, convert_options=options)
    except KeyError:
        raise UserError(f"{path}: the first line of a provenance file names the columns key and origin") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a CSV file of the columns key and origin ({one_line(error)})") from None
    if not len(table):
        raise UserError(f"{path}: the provenance file names no image (pool.provenance)")
    return table


def _check_relevant(relevant: str, origins: Sequence[str], source: str) -> None:
    if relevant not in origins:
        known = ", ".join(sorted(origins)[:10]) + (", …" if len(origins) > 10 else "")
        raise UserError(f"pool.relevant is {relevant!r}, which is no origin in {source}; there are: {known}")


def _drawn(source: NamedDataset) -> pa.Table:
    origins = open_source(source).origins()  # type: ignore[attr-defined]  # the drawn dataset's alone
    return pa.table({"key": list(origins), "origin": list(origins.values())})
