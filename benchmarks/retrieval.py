"""Retrieval metrics against the bare matrix product of queries and gallery, and against the usual dense matrix.

Random features are the hard case: a query's last true match lies near the gallery's end. Those drawn in clusters are
more like real ones. Times beside the product are taken in turns in one process; memory, and the usual way, each in a
process of its own.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import child
import numpy as np
from clustered import clustered_features, load_sides, random_features, save_sides
from timing import Paired, number, paired, show_table

WARM = 500  # queries that everything is tried on before it is timed, and gallery images
DRAWN = {"random": random_features, "clustered": clustered_features}

Case = dict[str, np.ndarray]


def evaluate(case: Case) -> float:
    """The platform's way."""
    from rayreid.evaluation.retrieval import evaluate_retrieval

    return evaluate_retrieval(**case).mAP


def usual(case: Case) -> float:
    """The whole distance matrix, a full sort per row."""
    from usual import mean_average_precision, squared_distances

    distances = squared_distances(case["query_features"], case["gallery_features"])
    pids, camids = ((case[f"query_{label}"], case[f"gallery_{label}"]) for label in ("pids", "camids"))
    return mean_average_precision(distances, pids, camids)


def once(work: Callable[[Case], float], folder: Path) -> Callable[[], dict[str, Any]]:
    case = load_sides(folder)
    work({name: values[:WARM] for name, values in case.items()})
    return lambda: {"mAP": work(case)}


def in_turns(folder: Path, repeats: int) -> dict[str, Any]:
    """The evaluation and the product, which writes into memory that is there already."""
    import torch

    case = load_sides(folder)
    query, gallery = (torch.from_numpy(case[f"{side}_features"]) for side in ("query", "gallery"))
    product = torch.empty(len(query), len(gallery))
    times = paired(lambda: evaluate(case), lambda: torch.mm(query, gallery.t(), out=product), repeats)
    return {"measured": times.measured, "baseline": times.baseline}


def serve(kind: str, folder: Path, repeats: int) -> None:
    """In a child: the imports, which are no part of the measured memory, then the work.

    Numba starts its compiler at the first call of anything compiled: 62 MiB whatever the size, counted as an import.
    """
    if kind != "usual":
        import numba

        import rayreid.evaluation.retrieval  # noqa: F401

        numba.njit(lambda: 0)()
    ways: dict[str, Callable[[], Callable[[], dict[str, Any]]]] = {
        "evaluation": lambda: once(evaluate, folder),
        "usual": lambda: once(usual, folder),
        "turns": lambda: lambda: in_turns(folder, repeats),
    }
    child.measure(ways[kind])


def compare(args: argparse.Namespace, drawn: str) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_sides(folder, *DRAWN[drawn](args.query + args.gallery, args.dimensions), args.query)
        for threads in args.threads:
            found = child.run(__file__, "turns", folder, threads, "--repeats", str(args.repeats))
            times = Paired(found["measured"], found["baseline"])
            rows.append(times.row(f"{drawn}, {threads} thread(s); baseline: product", "s", lambda seconds: seconds))
        ours = child.run(__file__, "evaluation", folder, max(args.threads))
        if args.gallery > args.dense:
            return [*rows, (f"{drawn}: peak memory", "MiB", number(ours["mib"]), "", "", "")]
        dense = child.run(__file__, "usual", folder, max(args.threads))
    for name, unit, key in (("time, once", "s", "seconds"), ("peak memory", "MiB", "mib")):
        values = (number(ours[key]), number(dense[key]), f"{ours[key] / dense[key]:.3f}")
        rows.append((f"{drawn}; baseline: usual way, {name}", unit, *values, ""))
    return [*rows, (f"{drawn}: mAP; baseline: usual way", "", f"{ours['mAP']:.6f}", f"{dense['mAP']:.6f}", "", "")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--query", type=int, default=3_368, help="query images")
    parser.add_argument("--gallery", type=int, default=15_913, help="gallery images")
    parser.add_argument("--dimensions", type=int, default=384, help="of a feature")
    parser.add_argument("--features", nargs="+", choices=list(DRAWN), default=list(DRAWN))
    parser.add_argument("--dense", type=int, default=20_000, help="gallery up to which the usual way is measured too")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()

    if args.child:
        serve(args.child[0], Path(args.child[1]), args.repeats)
        return
    rows = [row for drawn in args.features for row in compare(args, drawn)]
    title = f"mAP, CMC, mINP of {args.query:,} queries x {args.gallery:,} gallery images x {args.dimensions}"
    show_table(title, rows, ("torch", "numba", "numpy"))


if __name__ == "__main__":
    main()
