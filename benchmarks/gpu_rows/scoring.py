"""Scoring with two proxies, and extracting features, in one process as one actor does it."""

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from pictures import mixed_jpegs, random_jpegs
from scoring import Scorer, write_proxies
from store_access import make_store

from gpu_rows import flops
from gpu_rows.clock import forget_memory, kernels, memory, seconds_each
from gpu_rows.part import Part, Values, agreement
from rayreid.data.batch import ImageBatch
from rayreid.data.images import decode
from rayreid.data.store.store import ImageStore
from rayreid.models.embedding import AUTO_BATCH, Pass

COMPARED = 8
"""Images whose results are compared with the CPU's."""
SCORE_ERROR, COSINE = 0.01, 0.999
"""How far bfloat16 may move a score in [-1, 1], and the least cosine of a feature with the CPU's in float32."""


def _size(args: argparse.Namespace) -> tuple[int, int]:
    """(height, width) of the networks' input, and of the images."""
    return (64, 32) if args.toy else (256, 128)


def _proxies(args: argparse.Namespace, root: Path) -> tuple[Scorer, Scorer]:
    """Both proxies on the device, and on the CPU in float32."""
    write_proxies(root, "vit_tiny" if args.toy else "vit_small", _size(args))
    return Scorer(root, "auto", torch.device(args.device)), Scorer(root, "fp32", torch.device("cpu"))


def _batch(args: argparse.Namespace) -> int:
    return COMPARED if args.toy else AUTO_BATCH["cuda"]


def _nominal(args: argparse.Namespace, scorer: Scorer, networks: int) -> float:
    """Operations per image."""
    return sum(flops.of_forward(embed.backbone, _size(args)) for embed in scorer.embed[:networks])


def _alike(found: np.ndarray, expected: np.ndarray) -> Values:
    """Compare scores (n,), or features (n, D)."""
    if found.ndim == 1:
        difference = float(np.abs(found - expected).max())
        return {"largest_difference": difference, **agreement(difference < SCORE_ERROR)}
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = float(((found * expected).sum(axis=1) / lengths).min())
    return {"least_cosine": cosine, **agreement(cosine > COSINE)}


def decoded(args: argparse.Namespace) -> Iterator[Part]:
    """From decoded images of 256 × 128 on the host."""
    batch = _batch(args)
    images = [decode(data) for data in random_jpegs(batch, *_size(args))]
    with tempfile.TemporaryDirectory() as scratch:
        scorer, reference = _proxies(args, Path(scratch))
    keys = [str(number) for number in range(batch)]
    held = ImageBatch.collate(images, pinned=not args.toy)

    def rate() -> Values:
        forget_memory(args.device)
        seconds = seconds_each(lambda: scorer(held, keys), args.device, 1 if args.toy else 20, 1 if args.toy else 3)
        work = flops.rates("nominal", batch * _nominal(args, scorer, 2), seconds, args.device)
        return {"images_s": batch / seconds} | memory(args.device) | work

    def like_the_cpu() -> Values:
        few = ImageBatch.collate(images[:COMPARED])
        return _alike(scorer(few, keys[:COMPARED]), reference(few, keys[:COMPARED]))

    table = args.profile / "score.txt" if args.profile else None
    yield "rate", rate
    yield "device", lambda: kernels(lambda: scorer(held, keys), args.device, table)
    yield "like_the_cpu", like_the_cpu


def _from_store(args: argparse.Namespace, jpegs: list[bytes], extract: bool = False) -> Iterator[Part]:
    count = 2 * COMPARED if args.toy else 24_576
    threads, size, device = len(os.sched_getaffinity(0)), _batch(args), torch.device(args.device)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_store(root / "store", count, jpegs)
        store, (scorer, reference) = ImageStore(root / "store"), _proxies(args, root)
        run = Pass(store, _features(scorer) if extract else scorer, size, device, threads)

        def rate() -> Values:
            run(np.arange(min(count, 4 * size)))
            began = time.perf_counter()
            run(np.arange(count))
            seconds = time.perf_counter() - began
            work = flops.rates("nominal", count * _nominal(args, scorer, 1 if extract else 2), seconds, args.device)
            return {"images_s": count / seconds, "threads": float(threads), **work}

        def decoding_alone() -> Values:
            nothing = Pass(store, lambda images, keys: np.zeros(len(keys)), size, torch.device("cpu"), threads)
            began = time.perf_counter()
            nothing(np.arange(count))
            return {"decoding_alone_images_s": count / (time.perf_counter() - began)}

        def like_the_cpu() -> Values:
            head = _features(reference) if extract else reference
            here = Pass(store, head, COMPARED, torch.device("cpu"), threads)
            return _alike(*(compared(np.arange(COMPARED))[1] for compared in (run, here)))

        yield "rate", rate
        yield "decoding_alone", decoding_alone
        yield "like_the_cpu", like_the_cpu


def _features(scorer: Scorer) -> Callable[[ImageBatch, list[str]], np.ndarray]:
    return lambda images, keys: scorer.embed[0](images).cpu().numpy()


def jpegs(args: argparse.Namespace) -> Iterator[Part]:
    """From a store of JPEGs of 256 × 128."""
    yield from _from_store(args, random_jpegs(64, *_size(args)))


def mixed(args: argparse.Namespace) -> Iterator[Part]:
    """From a store of JPEGs of many sizes, on average as many pixels as 256 × 128."""
    yield from _from_store(args, mixed_jpegs(64, math.prod(_size(args))))


def extract(args: argparse.Namespace) -> Iterator[Part]:
    """One network's features, from a store of JPEGs of 256 × 128."""
    yield from _from_store(args, random_jpegs(64, *_size(args)), extract=True)
