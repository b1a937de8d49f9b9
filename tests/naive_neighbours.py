"""The same by dense matrices, sets and loops, in float64; and cases to compare on."""

import numpy as np


def lists(features, k):
    """(N, ≤ k) neighbours: the point itself, then by similarity, equal ones by row; and all similarities."""
    unit = features.astype(np.float64) / np.linalg.norm(features, axis=1, keepdims=True)
    similarities = unit @ unit.T
    ordered = similarities.copy()
    np.fill_diagonal(ordered, np.inf)
    return np.argsort(-ordered, axis=1, kind="stable")[:, :k], similarities


def encoding(features, full, half, k2, scaled=False):
    """(N, N) k-reciprocal encoding from the papers' definition."""
    ranks, similarities = lists(features, len(features))
    squared = 2 - 2 * similarities
    if scaled:
        squared = squared / squared.max(axis=1, keepdims=True)

    def reciprocal(i, k):
        return {j for j in ranks[i, :k] if i in ranks[j, :k]}

    weights = np.zeros_like(squared)
    for i in range(len(features)):
        own = reciprocal(i, full)
        chosen = set(own)
        for candidate in own:
            theirs = reciprocal(candidate, half)
            if len(theirs & own) * 3 > 2 * len(theirs):
                chosen |= theirs
        chosen = sorted(chosen)
        weights[i, chosen] = np.exp(-squared[i, chosen])
    weights /= weights.sum(axis=1, keepdims=True)
    return np.stack([weights[ranks[i, :k2]].mean(axis=0) for i in range(len(features))])


def jaccard(rows, others):
    """Jaccard distances of all rows to all others."""
    shared = np.stack([np.minimum(row, others).sum(axis=1) for row in rows])
    return 1 - shared / (2 - shared)


def clustered(seed, count, dim=8, ids=6, noise=0.8):
    """Points around a few directions, some of them twice."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(ids, dim))[rng.integers(0, ids, count)] + noise * rng.normal(size=(count, dim))
    return points.astype(np.float32)


def tied(seed, count, dim=8):
    """Four entries of ±1/2: every product is exact, so that many pairs are exactly as near as others, or the same."""
    rng = np.random.default_rng(seed)
    features = np.zeros((count, dim), np.float32)
    for row in features:
        row[rng.choice(dim, 4, replace=False)] = rng.choice([-0.5, 0.5], 4)
    return features
