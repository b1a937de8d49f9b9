"""Evaluation at MSMT17's size, from features."""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from clustered import clustered_features, load_sides, save_sides

from gpu_rows.part import Part, Values, agreement
from rayreid.evaluation.retrieval import evaluate_retrieval


def measure(args: argparse.Namespace) -> Iterator[Part]:
    queries, gallery = (50, 300) if args.toy else (11_659, 82_161)
    with tempfile.TemporaryDirectory() as scratch:
        save_sides(Path(scratch), *clustered_features(queries + gallery, 384), queries)
        sides = load_sides(Path(scratch))
    on_cpu = {name: torch.from_numpy(values) if "features" in name else values for name, values in sides.items()}
    there = {k: v.to(args.device) if isinstance(v, torch.Tensor) else v for k, v in on_cpu.items()}
    evaluate_retrieval(**there)

    def rate() -> Values:
        began = time.perf_counter()
        report = evaluate_retrieval(**there)
        return {"time_s": time.perf_counter() - began, "mAP": report.mAP}

    def like_the_cpu() -> Values:
        began = time.perf_counter()
        reference = evaluate_retrieval(**on_cpu)
        seconds = time.perf_counter() - began
        report = evaluate_retrieval(**there)
        same = abs(report.mAP - reference.mAP) < 1e-6 and abs(report.rank(1) - reference.rank(1)) < 1e-3
        return {"cpu_s": seconds, **agreement(same)}

    yield "rate", rate
    yield "like_the_cpu", like_the_cpu
