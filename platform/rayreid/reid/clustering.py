"""Pseudo labels: DBSCAN on the sparse k-reciprocal Jaccard distance, and measures of their quality.

As in cluster contrast (Dai et al., arXiv 2103.11568): Jaccard distance of the k-reciprocal encoding (k1 30, k2 6), then
DBSCAN (Ester et al., KDD 1996). Only distances up to ε are ever computed.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rayreid.errors import UserError
from rayreid.neighbours.k_reciprocal import encode, half_list, jaccard_distances
from rayreid.neighbours.knn import Neighbours

AUTO_EPS = tuple(percent / 100 for percent in range(30, 71, 5))
"""The values of ε among which `cluster` chooses if it is given none."""
OUTLIER = -1
UNKNOWN = -1  # pid


@dataclass(frozen=True)
class Clusters:
    """A clustering of N images into C clusters. C may be 0 or 1, from which nothing can be learned.

    Attributes:
        labels: (N,) int64 in [0, C), `OUTLIER` for images in no cluster.
        sizes: (C,) int64, number of images per cluster.
        eps: The ε with which they were found; None if it is not known.
    """

    labels: np.ndarray
    sizes: np.ndarray
    eps: float | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def statistics(self) -> dict[str, float]:
        """Return the numbers of clusters, outliers and images used, and the sizes of clusters.

        The keys are `clusters`, `outliers`, `images_used`, `cluster_size_min`, `cluster_size_median` and
        `cluster_size_max`; the sizes are 0 without clusters.
        """
        sizes = self.sizes if len(self) else np.zeros(1)
        return {
            "clusters": float(len(self)),
            "outliers": float((self.labels == OUTLIER).sum()),
            "images_used": float(self.sizes.sum()),
            "cluster_size_min": float(sizes.min()),
            "cluster_size_median": float(np.median(sizes)),
            "cluster_size_max": float(sizes.max()),
        }


def cluster(
    neighbours: Neighbours, k1: int = 30, k2: int = 6, eps: float | None = 0.6, min_samples: int = 4
) -> Clusters:
    """Return clusters of images by the Jaccard distance of their neighbour lists.

    Without ε, that of `AUTO_EPS` is taken which gives the most clusters (of several, the largest). The number of
    clusters rises with ε as more images find company, and falls again when clusters merge; where it is largest, most
    groups stand apart. The rule needs no labels. It costs one DBSCAN for each value, on the same distances.

    Args:
        neighbours: Neighbours of all images, in lists of `k1` entries (`knn.nearest(features, k1)`). If there are fewer
            images, every list has all of them.
        k1: Number of entries of a list, including the image itself.
        k2: Number of rows that query expansion averages, including the image's own.
        eps: ε, largest distance between neighbours of one cluster, in (0, 1); None: see above.
        min_samples: Number of images within ε, including the image itself, that make an image the core of a cluster.

    Raises:
        UserError: A number is out of range, or the features have collapsed.
    """
    if eps is not None and not 0 < eps < 1:
        raise UserError(f"clustering with eps {eps:g}: choose it between 0 and 1, where images share no neighbours")
    if not 1 <= k2 <= k1:
        raise UserError(f"clustering with k1 {k1}, k2 {k2}: need 1 <= k2 <= k1")
    if min_samples < 1:
        raise UserError(f"clustering with min_samples {min_samples}: need one or more")
    # scikit-learn takes over a second to import, and every command and worker imports this module.
    from sklearn.cluster import DBSCAN
    from sklearn.neighbors import sort_graph_by_row_values

    tried = AUTO_EPS if eps is None else (eps,)
    encoding = encode(neighbours, k1, half_list(k1), k2)
    graph = jaccard_distances(encoding, encoding.tocsc(), max(tried))
    graph = sort_graph_by_row_values(graph, copy=False, warn_when_not_sorted=False)

    def found(within: float) -> Clusters:
        labels = DBSCAN(eps=within, min_samples=min_samples, metric="precomputed").fit(graph).labels_
        return Clusters(labels, np.bincount(labels[labels != OUTLIER], minlength=0), within)

    return max(map(found, reversed(tried)), key=len)


def cluster_means(features: Tensor, clusters: Clusters) -> Tensor:
    """Return the means of the clusters' features: (N, D) → (C, D), same type and device, not normalised."""
    labels = torch.from_numpy(clusters.labels).to(features.device)
    kept = labels != OUTLIER
    sums = features.new_zeros(len(clusters), features.shape[1]).index_add_(0, labels[kept], features[kept])
    return sums / torch.from_numpy(clusters.sizes).to(sums)[:, None]


def label_quality(clusters: Clusters, pids: np.ndarray) -> dict[str, float]:
    """Return the agreement of pseudo labels with the true identities, for images with known identity.

    An outlier counts as a cluster of its own, so leaving many images out costs recall. Images with pid −1 are ignored.

    Args:
        clusters: A clustering of N images.
        pids: (N,) int, −1 for unknown.

    Returns:
        `ari` (adjusted Rand index, at most 1), `nmi` (normalised mutual information, in [0, 1]), and over all pairs of
        images `pair_precision`, `pair_recall` and their harmonic mean `pair_f`, in [0, 1]. It is empty if no identity
        is known.
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
    """Return the share; 0 of nothing is 0."""
    return float(part / whole) if whole else 0.0
