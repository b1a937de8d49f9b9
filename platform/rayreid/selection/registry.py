"""The selection strategies by name: the inputs of each one, and the function that ranks a pool's images by it.

To add a strategy, write its function in a module of this package and add one line to `STRATEGIES`. The name and the
options also go into `rayreid.config.selection`, which cannot import this module; a test holds both together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pyarrow as pa

from rayreid.errors import UserError
from rayreid.selection.clusters import cluster_priority
from rayreid.selection.combine import combine
from rayreid.selection.dedup import dedup
from rayreid.selection.filelist import Keys, ListMatch
from rayreid.selection.hierarchical import hierarchical_priority
from rayreid.selection.quality_rules import quality_priority
from rayreid.selection.similarity import target_similarity
from rayreid.selection.strategies import Priority, list_priority, random_priority, scored_priority


class Basis(Enum):
    """The data by which a strategy ranks a pool's images, and the arguments of its function."""

    KEYS = "keys"
    """The images' keys alone: rank(keys, seed) → priority (N,)."""
    LIST = "list"
    """An ordered file list: rank(N, match) → priority (N,)."""
    SCORES = "scores"
    """Scores of each image under θs and θt: rank(keys, table) → priority (N,)."""
    FEATURES = "features"
    """Features of the pool under θs: rank(features, device, …) → priority (N,), facts, and other columns if any."""
    MEASURES = "measures"
    """Measures of the quality of each image: rank(table, rules, by, place) → priority (N,) and facts."""
    PARTS = "parts"
    """Priorities by other strategies: rank(parts, N) → priority (N,) and facts."""


@dataclass(frozen=True)
class Strategy:
    """A way of ranking a pool's images.

    Attributes:
        basis: The data by which it ranks.
        rank: Its function; see `Basis` for the arguments.
        label: Name of its priorities in figures; empty if they are not worth drawing.
        targets: Whether `rank` also takes the features of each target's training images, as `targets`.
        seeded: Whether the result depends on the experiment's seed.
        images: Whether `rank` also takes `copies`, the number of each image's group of identical bytes, int64 (N,), and
            `sizes`, the number of its pixels, int64 (N,).
        pieces: Whether `rank` also takes `work`, how pieces of the work are done.
        centred: What its option `centre` is where that is `auto`.
        options: Fields of the section `select` that `rank` takes, under the same names.
    """

    basis: Basis
    rank: Callable[..., Any]
    label: str = ""
    targets: bool = False
    seeded: bool = False
    images: bool = False
    pieces: bool = False
    centred: bool = False
    options: tuple[str, ...] = ()

    @property
    def ranking(self) -> str | None:
        """Return the role of the artifact that holds its priorities; None if they are computed with the subset."""
        if self.basis is Basis.SCORES:
            return "scores"
        return "priority" if self.basis in (Basis.FEATURES, Basis.MEASURES, Basis.PARTS) else None

    @property
    def diagnosed(self) -> bool:
        """Return whether figures of what the order of its priorities means are computed; they need features."""
        return self.basis in (Basis.SCORES, Basis.FEATURES)

    @property
    def column(self) -> str:
        """Return the name of the column of priorities in that artifact's table."""
        return "cfs" if self.basis is Basis.SCORES else "priority"

    @property
    def needs_source_proxy(self) -> bool:
        """Return whether it needs θs."""
        return self.basis in (Basis.SCORES, Basis.FEATURES)

    @property
    def needs_target_proxies(self) -> bool:
        """Return whether it needs a θt for each target."""
        return self.basis is Basis.SCORES


STRATEGIES = {
    "cfs": Strategy(Basis.SCORES, scored_priority, label="CFS"),
    "target_similarity": Strategy(
        Basis.FEATURES,
        target_similarity,
        label="similarity to the target",
        targets=True,
        options=("mode", "centre"),
    ),
    "cluster": Strategy(
        Basis.FEATURES, cluster_priority, label="priority in its cluster", seeded=True, options=("clusters",)
    ),
    "hierarchical": Strategy(
        Basis.FEATURES, hierarchical_priority, label="priority in the hierarchy", seeded=True, options=("levels",)
    ),
    "dedup": Strategy(
        Basis.FEATURES,
        dedup,
        label="priority in its group",
        seeded=True,
        images=True,
        pieces=True,
        centred=True,
        options=("similarity", "keep", "clusters", "centre"),
    ),
    "quality": Strategy(
        Basis.MEASURES, quality_priority, label="worst rank among measures of quality", options=("rules", "by")
    ),
    "random": Strategy(Basis.KEYS, random_priority, seeded=True),
    "list": Strategy(Basis.LIST, list_priority),
    "combine": Strategy(Basis.PARTS, combine, label="weighted mean of ranks"),
}


def priority(
    strategy: str,
    keys: Keys,
    *,
    seed: int = 0,
    scores: pa.Table | None = None,
    match: ListMatch | None = None,
) -> Priority:
    """Return the priorities of a store's images by a strategy's name.

    Args:
        strategy: A name in `STRATEGIES`.
        keys: The store's keys, N of them.
        seed: For strategies that rank by keys; see `random_priority`.
        scores: For strategies whose priorities come in a table; see `scored_priority`.
        match: For strategies that follow a file list; see `list_priority`.

    Returns:
        Priorities float64 (N,).

    Raises:
        UserError: The strategy is unknown, or the strategy itself raises it.
        ValueError: The strategy's input is missing.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"unknown select.strategy {strategy!r}; known: {', '.join(STRATEGIES)}")
    found = STRATEGIES[strategy]
    if found.basis is Basis.KEYS:
        return found.rank(keys, seed)
    if found.basis is Basis.LIST:
        if match is None:
            raise ValueError(f"strategy {strategy} without its match")
        return found.rank(len(keys), match)
    if scores is None:
        raise ValueError(f"strategy {strategy} without its scores")
    return scored_priority(keys, scores, found.column)
