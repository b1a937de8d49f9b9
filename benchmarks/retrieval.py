"""Retrieval metrics against the bare matrix product of queries and gallery, on random features.

Random features are the hard case: a query's last true match lies near the gallery's end.
"""

import argparse

import numpy as np
import torch
from timing import paired, show_table

from rayreid.evaluation.retrieval import evaluate_retrieval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--query", type=int, default=3_368, help="query images")
    parser.add_argument("--gallery", type=int, default=15_913, help="gallery images")
    parser.add_argument("--dimensions", type=int, default=384, help="of a feature")
    parser.add_argument("--identities", type=int, default=751)
    parser.add_argument("--cameras", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1, help="of torch, for both")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    sizes = (args.query, args.gallery)
    query, gallery = (torch.from_numpy(rng.standard_normal((n, args.dimensions), dtype=np.float32)) for n in sizes)
    pids = [rng.integers(0, args.identities, n) for n in sizes]
    camids = [rng.integers(0, args.cameras, n) for n in sizes]
    product = torch.empty(args.query, args.gallery)
    times = paired(
        lambda: evaluate_retrieval(query, gallery, *pids, *camids),
        lambda: torch.mm(query, gallery.t(), out=product),
        args.repeats,
    )
    show_table(
        f"mAP, CMC, mINP of {args.query:,} queries x {args.gallery:,} gallery images x {args.dimensions}, "
        f"{args.threads} thread(s); baseline: the float32 matrix product",
        [times.row("evaluate_retrieval", "s", lambda seconds: seconds)],
        ("torch", "numpy"),
    )


if __name__ == "__main__":
    main()
