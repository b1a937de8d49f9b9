"""Evaluation at MSMT17's size, from features."""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from clustered import clustered_features, load_sides, save_sides

from rayreid.evaluation.retrieval import evaluate_retrieval


def measure(args: argparse.Namespace) -> dict[str, float | str]:
    queries, gallery = (50, 300) if args.toy else (11_659, 82_161)
    with tempfile.TemporaryDirectory() as scratch:
        save_sides(Path(scratch), *clustered_features(queries + gallery, 384), queries)
        sides = load_sides(Path(scratch))
    on_cpu = {name: torch.from_numpy(values) if "features" in name else values for name, values in sides.items()}
    there = {k: v.to(args.device) if isinstance(v, torch.Tensor) else v for k, v in on_cpu.items()}
    evaluate_retrieval(**there)
    began = time.perf_counter()
    report = evaluate_retrieval(**there)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    reference = evaluate_retrieval(**on_cpu)
    cpu = time.perf_counter() - began
    same = abs(report.mAP - reference.mAP) < 1e-6 and abs(report.rank(1) - reference.rank(1)) < 1e-3
    return {"time_s": seconds, "cpu_s": cpu, "mAP": report.mAP, "same": "yes" if same else "NO"}
