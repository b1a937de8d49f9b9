"""Pseudo labels: neighbours on the device, sparse distances and DBSCAN on the host."""

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch
from clustered import clustered_features

from gpu_rows.part import Part, Row, Values, agreement
from rayreid.neighbours.knn import nearest
from rayreid.reid.clustering import cluster


def measure(count: int) -> Row:
    def parts(args: argparse.Namespace) -> Iterator[Part]:
        few = torch.from_numpy(clustered_features(600 if args.toy else 5000, 384)[0])
        there = few.to(args.device)
        # Compiles the loops on the host, and makes the device ready.
        labels = cluster(nearest(there, 30)).labels
        points = there if args.toy else torch.from_numpy(clustered_features(count, 384)[0]).to(args.device)

        def rate() -> Values:
            began = time.perf_counter()
            neighbours = nearest(points, 30)
            searched = time.perf_counter()
            found = cluster(neighbours)
            return {
                "points": float(len(points)),
                "time_s": time.perf_counter() - began,
                "search_s": searched - began,
                "clusters": float(len(found)),
            }

        yield "rate", rate
        yield "like_the_cpu", lambda: agreement(np.array_equal(labels, cluster(nearest(few, 30)).labels))

    return parts
