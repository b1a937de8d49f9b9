"""One of the selections that a page compares, and the fractions of the pool at which they are compared."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayreid.config import Experiment, Select
from rayreid.data.store.store import ImageStore
from rayreid.pipeline.selection_graph import ranked_of
from rayreid.selection.meaning import Diagnosis
from rayreid.stages import select
from rayreid.stages.score_meaning import figures_of
from rayreid.storage.artifacts import Artifact

FRACTIONS = (0.1, 0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Selection:
    """One way of choosing from the pool.

    Attributes:
        label: Name on the page.
        strategy: Name of the strategy.
        artifact: The subset.
        manifest: Manifest of the subset.
        priority: Priority by index row of the pool, float64 (N,), NaN: never selected.
        figures: What is known of the order of the priorities; None for strategies that neither score nor rank, and for
            artifacts of earlier versions.
    """

    label: str
    strategy: str
    artifact: Artifact
    manifest: Mapping[str, Any]
    priority: np.ndarray
    figures: Diagnosis | None = None

    @property
    def cut(self) -> float:
        """The lowest priority in the subset."""
        return float(self.manifest["cut"])

    @property
    def unranked(self) -> int:
        """Number of images without a priority."""
        return int(np.isnan(self.priority).sum())


def selection_of(label: str, e: Experiment, graph: Mapping[str, Artifact], store: ImageStore) -> Selection:
    """Return the selection of a row whose artifacts are complete."""
    ranked = ranked_of(graph)
    priority = select.ranking(e.select, e.seed, store, ranked.path if ranked else None)
    manifest = select.read_manifest(graph["subset"].path)
    figures = figures_of(ranked) if ranked else None
    return Selection(label, e.select.strategy, graph["subset"], manifest, priority, figures)


def sizes_of(store: ImageStore) -> dict[float, int]:
    """Return the sizes of the subsets to compare, by fraction; without empty ones."""
    sizes = {fraction: Select(fraction=fraction).size(len(store)) for fraction in FRACTIONS}
    return {fraction: size for fraction, size in sizes.items() if size}


def cuts_of(store: ImageStore, one: Selection) -> dict[float, int]:
    """Return the sizes of a selection's cuts, by fraction: with the whole pool if it gives some images no priority."""
    return sizes_of(store) | ({1.0: len(store)} if one.unranked else {})
