"""The usual way: k-reciprocal encoding, Jaccard distance and the ranking of a gallery on dense NumPy matrices.

Written from the papers' description (arXiv 1701.08398; the Market-1501 protocol), for comparison only.
"""

import numpy as np

FLOAT = np.float32


def reciprocal(lists: np.ndarray, point: int, k: int) -> np.ndarray:
    """Those of a point's first k neighbours that have it among their own."""
    forward = lists[point, :k]
    return forward[(lists[forward, :k] == point).any(axis=1)]


def encode(lists: np.ndarray, full: int, half: int, k2: int, squared: "np.ndarray | Features") -> np.ndarray:
    """(N, N) weights: row i over the expanded reciprocal neighbours of i, averaged over its first k2 neighbours."""
    count = len(lists)
    fulls = [reciprocal(lists, i, full) for i in range(count)]
    halves = [reciprocal(lists, i, half) for i in range(count)]
    encoding = np.zeros((count, count), FLOAT)
    for i in range(count):
        members = [fulls[i]]
        for candidate in fulls[i]:
            if len(np.intersect1d(halves[candidate], fulls[i])) > 2 / 3 * len(halves[candidate]):
                members.append(halves[candidate])
        chosen = np.unique(np.concatenate(members))
        weights = np.exp(-squared[i, chosen])
        encoding[i, chosen] = weights / weights.sum()
    if k2 == 1:
        return encoding
    averaged = np.zeros_like(encoding)
    for i in range(count):
        averaged[i] = encoding[lists[i, :k2]].mean(axis=0)
    return averaged


def jaccard(encoding: np.ndarray, rows: int) -> np.ndarray:
    """(`rows`, N) Jaccard distances of the first rows to all, by way of the rows in which a column is not zero."""
    count = len(encoding)
    holders = [np.flatnonzero(encoding[:, column]) for column in range(count)]
    distances = np.zeros((rows, count), FLOAT)
    for i in range(rows):
        shared = np.zeros(count, FLOAT)
        for column in np.flatnonzero(encoding[i]):
            shared[holders[column]] += np.minimum(encoding[i, column], encoding[holders[column], column])
        distances[i] = 1 - shared / (2 - shared)
    return np.maximum(distances, 0)


class Features:
    """Squared distances of unit features, computed where they are asked for."""

    def __init__(self, features: np.ndarray):
        self.features = features

    def __getitem__(self, place: tuple[int, np.ndarray]) -> np.ndarray:
        i, others = place
        return 2 - 2 * self.features[others] @ self.features[i]


def rerank(query: np.ndarray, gallery: np.ndarray, k1: int, k2: int, weight: float) -> np.ndarray:
    """(Q, G) re-ranked distances of unit features."""
    both = np.concatenate([query, gallery])
    squared = 2 - 2 * both @ both.T
    squared /= squared.max(axis=1, keepdims=True)
    lists = np.argsort(squared, axis=1).astype(np.int32)
    encoding = encode(lists, k1 + 1, round(k1 / 2) + 1, k2, squared)
    distances = (1 - weight) * jaccard(encoding, len(query)) + weight * squared[: len(query)]
    return distances[:, len(query) :]


def squared_distances(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """(Q, G) squared distances of unit features."""
    return 2 - 2 * query @ gallery.T


def mean_average_precision(
    distances: np.ndarray, pids: tuple[np.ndarray, ...], camids: tuple[np.ndarray, ...]
) -> float:
    """mAP by the Market-1501 protocol, one full sort and one turn of a loop per query."""
    order = np.argsort(distances, axis=1)
    (query_pids, gallery_pids), (query_camids, gallery_camids) = pids, camids
    precisions = []
    for i, ranking in enumerate(order):
        same = gallery_pids[ranking] == query_pids[i]
        hits = same[~(same & (gallery_camids[ranking] == query_camids[i]))]
        if hits.any():
            precisions.append((hits.cumsum() / np.arange(1, len(hits) + 1))[hits].mean())
    return float(np.mean(precisions))
