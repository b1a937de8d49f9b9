"""Where pool images come from, where that is known: for judging a selection, never for making one."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from rayreid.artifacts import data_path
from rayreid.config import Source
from rayreid.errors import UserError
from rayreid.stages.ingest import open_source


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
        table = self.read()
        places = pc.index_in(pa.array(keys.tolist(), pa.string()), value_set=table["key"].combine_chunks())
        return np.array(pc.fill_null(table["origin"].take(places), "unknown").to_pylist())

    def judge(self, keys: np.ndarray, priority: np.ndarray) -> dict[str, float]:
        """How well a priority separates the target's own domain from the rest: AUC, over images that have both."""
        usable = np.isfinite(priority)
        # Here, not above: workers import this module without ever judging, and scikit-learn takes seconds.
        from sklearn.metrics import roc_auc_score

        relevant = self.origins(keys[usable]) == self.relevant
        if relevant.all() or not relevant.any():
            return {}
        return {"auc": float(roc_auc_score(relevant, priority[usable]))}

    def shares(self, keys: np.ndarray) -> dict[str, float]:
        """The share of each origin among some images."""
        names, counts = np.unique(self.origins(keys), return_counts=True)
        return {f"share.{name}": count / len(keys) for name, count in zip(names, counts, strict=True)}

    def groups(self, keys: np.ndarray) -> dict[str, np.ndarray]:
        """Which of some images are of each origin: name → mask (N,)."""
        origins = self.origins(keys)
        return {str(name): origins == name for name in np.unique(origins)}


def provenance_of(source: Source) -> Provenance | None:
    """What is known of a pool: the file that the configuration names, or what a synthetic pool knows of itself.

    Raises:
        UserError: the file is missing, or `relevant` is not said.
    """
    if source.provenance is not None:
        if source.relevant is None:
            raise UserError("pool.provenance is given: say with pool.relevant which origin is the target's own domain")
        path = data_path(source.provenance)
        if not path.exists():
            raise UserError(f"{path}: no such file (pool.provenance)")
        return Provenance(lambda: pyarrow.csv.read_csv(path).select(["key", "origin"]), source.relevant)
    if source.dataset == "synthetic":
        return Provenance(lambda: _drawn(source), source.relevant or "target_domain")
    return None


def _drawn(source: Source) -> pa.Table:
    origins = open_source(source).origins()  # type: ignore[attr-defined]
    return pa.table({"key": list(origins), "origin": list(origins.values())})
