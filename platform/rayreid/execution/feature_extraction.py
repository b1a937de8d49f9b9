"""Extraction of a model's features of images, collected from the actors that compute them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from rayreid.config import Auto
from rayreid.console import Screen
from rayreid.data.batch import ImageBatch
from rayreid.data.store.listed import ListedImages
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.execution.actor_pool import stream
from rayreid.models.embedding import Embedder


class _Head:
    """A head that returns global features as arrays."""

    def __init__(self, path: Path, strict: bool, after: bool, device: torch.device):
        # bf16 rounds coarsely enough to swap close ranks; published numbers use float32.
        self.embed = Embedder(path, device, "fp32", strict=strict, after=after)

    def __call__(self, images: ImageBatch, keys: Sequence[str]) -> np.ndarray:
        return self.embed(images).cpu().numpy()


def extract(
    images: ImageStore | ListedImages,
    rows: np.ndarray,
    weights: Path,
    batch_size: int | Auto,
    screen: Screen,
    strict: bool = True,
    after: bool = False,
) -> tuple[np.ndarray, dict[int, str]]:
    """Return features of the given images, computed on all GPUs or CPUs of the cluster.

    Args:
        images: A store, or images in their original files.
        rows: Index rows int64 (n,), distinct, in any order.
        weights: Weights file in this package's format.
        batch_size: Images per forward pass.
        screen: Screen that shows the progress.
        strict: See `rayreid.models.weights.load_weights`.
        after: See `rayreid.models.neck.load_neck`.

    Returns:
        Features float32 (n, D) in the order of `rows`, and {row: reason} of the images that could not be decoded; the
        features of these images are NaN.

    Raises:
        UserError: None of the images could be decoded, or features are not finite.
    """
    order = np.argsort(rows)
    ascending = rows[order]
    source = images.directory if isinstance(images, ImageStore) else images
    features: np.ndarray | None = None
    broken: dict[int, str] = {}
    with screen.bar("features", len(rows)) as bar:
        done = 0
        for part, values, bad in stream(source, [ascending], partial(_Head, weights, strict, after), batch_size):
            broken.update(bad)
            if len(part):
                features = np.full((len(rows), values.shape[1]), np.nan, np.float32) if features is None else features
                features[order[np.searchsorted(ascending, part)]] = values
            done += len(part) + len(bad)
            bar.to(done)
    if features is None:
        reason = f" ({next(iter(broken.values()))})" if broken else ""
        raise UserError(f"not one of the {len(rows)} images could be decoded{reason}")
    faulty = int((~np.isfinite(features).all(axis=1)).sum()) - len(broken)
    if faulty:
        raise UserError(f"{faulty} of {len(rows)} features hold NaN or infinity: the model in {weights} has diverged")
    return features, broken
