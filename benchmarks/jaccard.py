"""Pseudo labels (k-NN, sparse Jaccard distance, DBSCAN) against the bare k-NN search and the usual dense matrices.

Features are drawn in clusters of 17 in the mean. Every measurement is a process of its own: so its peak memory is its
own, too. The dense matrices are measured once, where the images are few enough for them.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import child
import numpy as np
from clustered import clustered_features
from timing import Paired, in_turns, number, show_table

K1, K2, EPS, MIN_SAMPLES = 30, 6, 0.6, 4
WARM = 2_000  # images that everything is tried on before it is timed


def prepare(kind: str, folder: Path) -> Callable[[], dict[str, Any]]:
    features = np.load(folder / "features.npy")
    work = CHILDREN[kind]
    work(features[:WARM])

    def timed() -> dict[str, Any]:
        labels, facts = work(features)
        if labels is not None:
            np.save(folder / f"{kind}.npy", labels)
        return facts

    return timed


def sparse(features: np.ndarray) -> tuple[np.ndarray | None, dict[str, Any]]:
    """The platform's way."""
    from rayreid.neighbours.knn import nearest
    from rayreid.reid.clustering import cluster

    began = perf_counter()
    neighbours = nearest(features, K1)
    searched = perf_counter() - began
    clusters = cluster(neighbours, K1, K2, EPS, MIN_SAMPLES)
    return clusters.labels, {"search": searched, "clusters": len(clusters)}


def compiled(features: np.ndarray) -> tuple[np.ndarray | None, dict[str, Any]]:
    """A little of the same: numba's cache is then filled."""
    sparse(features[:WARM])
    return None, {}


def search(features: np.ndarray) -> tuple[np.ndarray | None, dict[str, Any]]:
    """The bare search: faiss' exact index."""
    flat_search(features)
    return None, {}


def flat_search(features: np.ndarray) -> np.ndarray:
    import faiss

    index = faiss.IndexFlatIP(features.shape[1])
    index.add(features)
    return index.search(features, K1)[1]


def usual(features: np.ndarray) -> tuple[np.ndarray | None, dict[str, Any]]:
    """faiss, then dense N×N matrices."""
    from sklearn.cluster import DBSCAN
    from usual import Features, encode, jaccard

    encoding = encode(flat_search(features), K1, round(K1 / 2) + 1, K2, Features(features))
    distances = jaccard(encoding, len(features))
    return DBSCAN(eps=EPS, min_samples=MIN_SAMPLES, metric="precomputed").fit(distances).labels_, {}


CHILDREN = {"compiled": compiled, "sparse": sparse, "search": search, "usual": usual}


def import_all(kind: str) -> None:
    """What is no part of the measured memory."""
    if kind in ("compiled", "sparse"):
        import rayreid.reid.clustering  # noqa: F401
    else:
        import faiss  # noqa: F401
        import sklearn.cluster  # noqa: F401


def same_up_to_names(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = np.unique(np.stack([a, b]), axis=1)
    outliers_agree = ((a == -1) == (b == -1)).all()
    return bool(outliers_agree and len(pairs[0]) == len(np.unique(a)) == len(np.unique(b)))


def compare(count: int, dimensions: int, threads: int, repeats: int, dense: bool) -> None:
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        np.save(folder / "features.npy", clustered_features(count, dimensions)[0])
        child.run(__file__, "compiled", folder, threads)
        kinds = ("sparse", "search")
        results: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
        for repeat in range(repeats):
            for which in in_turns(repeat):
                results[kinds[which]].append(child.run(__file__, kinds[which], folder, threads))
        whole = results["sparse"]
        times = Paired(*([result["seconds"] for result in results[kind]] for kind in kinds))
        rows += [
            times.row("pseudo labels; baseline: bare search", "s", lambda seconds: seconds),
            ("of which its own search", "s", number(median(result["search"] for result in whole)), "", "", ""),
        ]
        mib = median(result["mib"] for result in whole)
        if dense:
            once = child.run(__file__, "usual", folder, threads)
            same = same_up_to_names(np.load(folder / "sparse.npy"), np.load(folder / "usual.npy"))
            ratio = median(times.measured) / once["seconds"]
            seconds = number(median(times.measured)), number(once["seconds"])
            labels = "same labels" if same else "OTHER LABELS"
            rows += [
                ("pseudo labels; baseline: usual way", "s", *seconds, f"{ratio:.3f}", labels),
                (
                    "peak memory; baseline: usual way",
                    "MiB",
                    number(mib),
                    number(once["mib"]),
                    f"{mib / once['mib']:.3f}",
                    "",
                ),
            ]
        else:
            rows.append(("peak memory", "MiB", number(mib), "", "", ""))
    title = f"{count:,} images x {dimensions}, {whole[0]['clusters']:,} clusters, {threads} threads"
    show_table(title, rows, ("torch", "numba", "scikit-learn", "faiss-gpu", "numpy"))
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[12_936, 32_621], help="numbers of images")
    parser.add_argument("--dimensions", type=int, default=384, help="of a feature")
    parser.add_argument("--dense", type=int, default=32_621, help="images up to which the usual way is measured too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()

    if args.child:
        kind, folder = args.child
        import_all(kind)
        child.measure(lambda: prepare(kind, Path(folder)))
        return
    for count in args.images:
        compare(count, args.dimensions, args.threads, args.repeats, count <= args.dense)


if __name__ == "__main__":
    main()
