"""Pseudo labels: neighbours on the device, sparse distances and DBSCAN on the host."""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from clustered import clustered_features

from rayreid.neighbours.knn import nearest
from rayreid.reid.clustering import cluster


def measure(count: int) -> Callable[[argparse.Namespace], dict[str, float | str]]:
    def run(args: argparse.Namespace) -> dict[str, float | str]:
        few = clustered_features(600 if args.toy else 5000, 384)[0]
        device = torch.device(args.device)
        labels = [cluster(nearest(torch.from_numpy(few).to(there), 30)).labels for there in (device, "cpu")]
        points = torch.from_numpy(few if args.toy else clustered_features(count, 384)[0]).to(device)
        began = time.perf_counter()
        neighbours = nearest(points, 30)
        searched = time.perf_counter()
        found = cluster(neighbours)
        return {
            "points": float(len(points)),
            "time_s": time.perf_counter() - began,
            "search_s": searched - began,
            "clusters": float(len(found)),
            "same": "yes" if np.array_equal(*labels) else "NO",
        }

    return run
