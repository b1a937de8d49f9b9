"""k-reciprocal re-ranking with its mAP against the usual dense matrices, on features drawn in clusters.

Each measurement is a process of its own: so its peak memory is its own, too.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import child
import numpy as np
from clustered import clustered_features, load_sides, save_sides
from timing import Paired, number, show_table

K1, K2, WEIGHT = 20, 6, 0.3
WARM = 500  # queries that everything is tried on before it is timed, and gallery images

Case = dict[str, np.ndarray]


def prepare(kind: str, folder: Path) -> Callable[[], dict[str, Any]]:
    case = load_sides(folder)
    work = CHILDREN[kind]
    work({name: values[:WARM] for name, values in case.items()})
    return lambda: {"mAP": work(case)}


def sparse(case: Case) -> float:
    """The platform's way."""
    from rayreid.evaluation.rerank import Reranking
    from rayreid.evaluation.retrieval import evaluate_retrieval

    return evaluate_retrieval(**case, scores=Reranking(K1, K2, WEIGHT)).mAP


def usual(case: Case) -> float:
    """Dense matrices over queries and gallery, a full sort per row."""
    from usual import mean_average_precision, rerank

    distances = rerank(case["query_features"], case["gallery_features"], K1, K2, WEIGHT)
    pids, camids = ((case[f"query_{label}"], case[f"gallery_{label}"]) for label in ("pids", "camids"))
    return mean_average_precision(distances, pids, camids)


def compiled(case: Case) -> float:
    """A little of the same: numba's cache is then filled."""
    return sparse({name: values[:WARM] for name, values in case.items()})


CHILDREN = {"compiled": compiled, "sparse": sparse, "usual": usual}


def import_all(kind: str) -> None:
    """What is no part of the measured memory."""
    if kind != "usual":
        import rayreid.evaluation.rerank
        import rayreid.evaluation.retrieval  # noqa: F401


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--query", type=int, default=3_368, help="query images")
    parser.add_argument("--gallery", type=int, default=15_913, help="gallery images")
    parser.add_argument("--dimensions", type=int, default=384, help="of a feature")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="of the platform's way; the usual one is measured once")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()

    if args.child:
        kind, folder = args.child
        import_all(kind)
        child.measure(lambda: prepare(kind, Path(folder)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        save_sides(Path(scratch), *clustered_features(args.query + args.gallery, args.dimensions), args.query)
        child.run(__file__, "compiled", Path(scratch), args.threads)
        results = [child.run(__file__, "sparse", Path(scratch), args.threads) for _ in range(args.repeats)]
        once = child.run(__file__, "usual", Path(scratch), args.threads)
    times = Paired([result["seconds"] for result in results], [once["seconds"]] * args.repeats)
    mib = median(result["mib"] for result in results)
    show_table(
        f"re-ranking of {args.query:,} queries x {args.gallery:,} gallery images x {args.dimensions}, "
        f"{args.threads} threads; baseline: the usual way, once",
        [
            times.row("re-ranking and mAP", "s", lambda seconds: seconds),
            ("peak memory", "MiB", number(mib), number(once["mib"]), f"{mib / once['mib']:.3f}", ""),
            ("mAP", "", f"{results[0]['mAP']:.5f}", f"{once['mAP']:.5f}", "", ""),
        ],
        ("torch", "numba", "scipy", "numpy"),
    )


if __name__ == "__main__":
    main()
