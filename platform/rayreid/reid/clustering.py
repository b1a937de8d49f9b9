"""Pseudo labels: DBSCAN on the sparse k-reciprocal Jaccard distance, and how good they are.

As in cluster contrast (Dai et al., arXiv 2103.11568): Jaccard distance of the k-reciprocal encoding (k1 30, k2 6), then
DBSCAN (Ester et al., KDD 1996). Only distances up to ε are ever formed.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayreid.errors import UserError
from rayreid.neighbours.k_reciprocal import encode, half_list, jaccard_distances
from rayreid.neighbours.knn import Neighbours

OUTLIER = -1
UNKNOWN = -1  # pid


@dataclass(frozen=True)
class Clusters:
    """A clustering of N images into C clusters; C may be 0 or 1, of which nothing can be learned.

    Attributes:
        labels: (N,) int64 in [0, C), `OUTLIER` where an image belongs to none.
        sizes: (C,) int64 images per cluster.
    """

    labels: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)

    def statistics(self) -> dict[str, float]:
        """`clusters`, `outliers`, `images_used`, and `cluster_size_min`, `_median`, `_max` (0 without clusters)."""
        sizes = self.sizes if len(self) else np.zeros(1)
        return {
            "clusters": float(len(self)),
            "outliers": float((self.labels == OUTLIER).sum()),
            "images_used": float(self.sizes.sum()),
            "cluster_size_min": float(sizes.min()),
            "cluster_size_median": float(np.median(sizes)),
            "cluster_size_max": float(sizes.max()),
        }


def cluster(neighbours: Neighbours, k1: int = 30, k2: int = 6, eps: float = 0.6, min_samples: int = 4) -> Clusters:
    """Cluster images by the Jaccard distance of their neighbour lists.

    Args:
        neighbours: of all images, lists of `k1` entries (`knn.nearest(features, k1)`). With fewer images than that
            every list holds all of them.
        k1: entries of a list, the image itself included.
        k2: rows that query expansion averages, the image's own included.
        eps: ε, greatest distance between neighbours of one cluster, in (0, 1).
        min_samples: images within ε, itself included, that make an image the core of a cluster.

    Raises:
        UserError: a number out of range, or features that have collapsed.
    """
    if not 0 < eps < 1:
        raise UserError(f"clustering with eps {eps:g}: choose it between 0 and 1, where images share no neighbours")
    if not 1 <= k2 <= k1:
        raise UserError(f"clustering with k1 {k1}, k2 {k2}: need 1 <= k2 <= k1")
    if min_samples < 1:
        raise UserError(f"clustering with min_samples {min_samples}: need one or more")
    # scikit-learn takes over a second to import, and every command and worker imports this module.
    from sklearn.cluster import DBSCAN
    from sklearn.neighbors import sort_graph_by_row_values

    encoding = encode(neighbours, k1, half_list(k1), k2)
    graph = jaccard_distances(encoding, encoding.tocsc(), eps)
    graph = sort_graph_by_row_values(graph, copy=False, warn_when_not_sorted=False)
    labels = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(graph).labels_
    return Clusters(labels, np.bincount(labels[labels != OUTLIER], minlength=0))


def cluster_means(features: Tensor, clusters: Clusters) -> Tensor:
    """Means of the clusters' features: (N, D) → (C, D), same type and device, not normalised."""
    labels = torch.from_numpy(clusters.labels).to(features.device)
    kept = labels != OUTLIER
    sums = features.new_zeros(len(clusters), features.shape[1]).index_add_(0, labels[kept], features[kept])
    return sums / torch.from_numpy(clusters.sizes).to(sums)[:, None]


def label_quality(clusters: Clusters, pids: np.ndarray) -> dict[str, float]:
    """Agreement of pseudo labels with the true identities, where those are known.

    An outlier counts as a cluster of its own: leaving many images out costs recall. Images with pid −1 are left out.

    Args:
        clusters: of N images.
        pids: (N,) int, −1 unknown.

    Returns:
        `ari` (adjusted Rand index, at most 1), `nmi` (normalised mutual information, in [0, 1]), and over all pairs of
        images `pair_precision`, `pair_recall` and their harmonic mean `pair_f`, in [0, 1]; nothing if no identity is
        known.
    """
    known = pids != UNKNOWN
    if not known.any():
        return {}
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import pair_confusion_matrix

    outlier = clusters.labels == OUTLIER
    labels = np.where(outlier, len(clusters) + np.cumsum(outlier), clusters.labels)[known]
    (_, false), (missed, together) = pair_confusion_matrix(pids[known], labels)
    return {
        "ari": float(adjusted_rand_score(pids[known], labels)),
        "nmi": float(normalized_mutual_info_score(pids[known], labels)),
        "pair_precision": _share(together, together + false),
        "pair_recall": _share(together, together + missed),
        "pair_f": _share(2 * together, 2 * together + false + missed),
    }


def _share(part: int, whole: int) -> float:
    """0 of nothing is 0."""
    return float(part / whole) if whole else 0.0
