"""Scoring with two proxies, and extracting features, in one process as one actor does it."""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pictures import mixed_jpegs, random_jpegs
from scoring import Scorer, write_proxies
from store_access import make_store

from gpu_rows.clock import kernels, seconds_each
from rayreid.data.batch import ImageBatch
from rayreid.data.images import decode
from rayreid.data.store.store import ImageStore
from rayreid.models.embedding import AUTO_BATCH, Pass

Values = dict[str, float | str]


def _proxies(args: argparse.Namespace, root: Path) -> tuple[Scorer, Scorer]:
    """Both proxies on the device, and on the CPU in float32."""
    write_proxies(root, "vit_tiny" if args.toy else "vit_small", (256, 128))
    return Scorer(root, "auto", torch.device(args.device)), Scorer(root, "fp32", torch.device("cpu"))


def decoded(args: argparse.Namespace) -> Values:
    """From decoded images of 256 × 128 on the host."""
    batch = 8 if args.toy else AUTO_BATCH["cuda"]
    images = [decode(data) for data in random_jpegs(batch, 256, 128)]
    with tempfile.TemporaryDirectory() as scratch:
        scorer, reference = _proxies(args, Path(scratch))
        keys = [str(number) for number in range(batch)]
        held = ImageBatch.collate(images, pinned=not args.toy)
        seconds = seconds_each(lambda: scorer(held, keys), args.device, 2 if args.toy else 20)
        few = ImageBatch.collate(images[:8])
        difference = float(np.abs(scorer(few, keys[:8]) - reference(few, keys[:8])).max())
        table = args.profile / "score.txt" if args.profile else None
        return {
            "images_s": batch / seconds,
            **kernels(lambda: scorer(held, keys), args.device, table),
            "largest_difference": difference,
            "same": "yes" if difference < 0.01 else "NO",
        }


def _from_store(args: argparse.Namespace, jpegs: list[bytes], extract: bool = False) -> Values:
    count = 32 if args.toy else 24_576
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_store(root / "store", count, jpegs)
        store, (scorer, _) = ImageStore(root / "store"), _proxies(args, root)
        function = _features(scorer) if extract else scorer
        device = torch.device(args.device)
        size = 8 if args.toy else AUTO_BATCH["cuda"]
        run = Pass(store, function, size, device, threads)
        run(np.arange(min(count, 4 * size)))
        began = time.perf_counter()
        run(np.arange(count))
        seconds = time.perf_counter() - began
        nothing = Pass(store, lambda images, keys: np.zeros(len(keys)), size, torch.device("cpu"), threads)
        began = time.perf_counter()
        nothing(np.arange(count))
        return {
            "images_s": count / seconds,
            "decoding_alone_images_s": count / (time.perf_counter() - began),
            "threads": float(threads),
        }


def _features(scorer: Scorer) -> Callable[[ImageBatch, list[str]], np.ndarray]:
    return lambda images, keys: scorer.embed[0](images).cpu().numpy()


def jpegs(args: argparse.Namespace) -> Values:
    """From a store of JPEGs of 256 × 128."""
    return _from_store(args, random_jpegs(64, 256, 128))


def mixed(args: argparse.Namespace) -> Values:
    """From a store of JPEGs of many sizes, on average as many pixels as 256 × 128."""
    return _from_store(args, mixed_jpegs(64, 256 * 128))


def extract(args: argparse.Namespace) -> Values:
    """One network's features, from a store of JPEGs of 256 × 128."""
    return _from_store(args, random_jpegs(64, 256, 128), extract=True)
