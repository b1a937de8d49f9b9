"""Nearest neighbours of every point among all points, by cosine similarity (equally, by distance on the unit sphere).

The exact search on the CPU computes each tile of similarities once and offers it to both its rows and its columns,
which halves the products of an ordinary search. On a CUDA device it is a product and a top-k per block of rows. faiss
is needed only for the approximate search, and can also be chosen for the exact one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rayreid.devices import tf32
from rayreid.errors import UserError, missing_extra
from rayreid.neighbours.kernels import in_blocks, side_by_side, take_columns, take_rows, thread_pool

Engine = Literal["torch", "faiss", "approximate"]
ENGINES: tuple[Engine, ...] = ("torch", "faiss", "approximate")

TILE = 2048  # number of rows and columns of a tile
BLOCK_ENTRIES = 2**27  # number of similarities in a device's memory at once
SAMPLE = 64  # number of points whose neighbours are checked
TOLERANCE = 1e-4  # tolerance of a similarity in float32
BELOW_ALL = -2.0  # less than any cosine
CELLS_PER_ROOT = 4  # number of cells of the approximate index, in units of √N
PROBED = 32  # number of cells searched per point
WITHOUT_FAISS = "do without it: adapt.search=torch, another select.strategy"
POINTS_PER_CELL = 40  # number of points per cell from which the cells are computed


@dataclass(frozen=True)
class Neighbours:
    """The k nearest of N points: the point itself first, then by descending similarity, equal ones by ascending row.

    Attributes:
        features: (N, D) float32, C-contiguous: the points, scaled to length 1.
        rows: (N, k) int32; −1 after the last one if the approximate search found fewer.
        similarities: (N, k) float32 cosines.
        least: (N,) float32, the cosine with the farthest point; None if not requested.
        recall: Share of the true neighbours found, over a sample, in [0, 1]; 1 for an exact search.
    """

    features: np.ndarray
    rows: np.ndarray
    similarities: np.ndarray
    least: np.ndarray | None
    recall: float


def unit_rows(features: Tensor | np.ndarray) -> Tensor:
    """Return (N, D) features as float32 of length 1, on their device.

    Raises:
        UserError: The features are not a matrix, are empty, or contain rows that are zero or not finite.
    """
    raw = torch.as_tensor(features).float()
    if raw.dim() != 2 or not raw.numel():
        raise UserError(f"neighbours are searched among features (images, dimensions), not {tuple(raw.shape)}")
    norms = torch.linalg.vector_norm(raw, dim=1)
    broken = (~(norms.isfinite() & (norms > 0))).nonzero().flatten()
    if len(broken):
        raise UserError(
            f"{len(broken)} of {len(raw)} features are zero, NaN or infinite (first: row {int(broken[0])}): "
            "the model that made them has diverged"
        )
    return F.normalize(raw, dim=1).contiguous()


@torch.inference_mode()
def nearest(features: Tensor | np.ndarray, k: int, engine: Engine = "torch", farthest: bool = False) -> Neighbours:
    """Return the k nearest of every point among all points, including the point itself.

    The result of a small sample is checked against a dense product, because faiss with several GPUs has returned wrong
    neighbours.

    Args:
        features: (N, D) float; normalised here. The search runs in float32 on their device.
        k: Number of entries of a list, including the point itself; N if there are fewer points.
        engine: "torch" is exact and needs no other package. "faiss" is exact, on all GPUs that faiss sees.
            "approximate" is faiss' inverted file, for millions of points; its recall is measured.
        farthest: Whether to find the smallest similarity too; "torch" only.

    Raises:
        UserError: A feature has no direction, k is out of range, faiss is missing, or the check finds wrong neighbours.
    """
    points = unit_rows(features)
    if k < 1:
        raise UserError(f"a list of {k} neighbours: ask for one or more")
    if engine not in ENGINES:
        raise UserError(f"no neighbour search {engine!r}: choose one of {', '.join(ENGINES)}")
    k = min(k, len(points))
    if engine != "torch":
        if farthest:
            raise ValueError("faiss does not return the farthest point")
        similarities, rows = _itself_first(*_by_faiss(points, k, engine == "approximate"))
        least = None
    elif points.is_cuda:
        similarities, rows, least = _by_blocks(points, k)
        similarities, rows = _itself_first(similarities, rows)
    else:
        similarities, rows, least = _by_tiles(points, k)
    recall = check_sample(points, similarities, rows, exact=engine != "approximate")
    return Neighbours(points.cpu().numpy(), rows, similarities, least if farthest else None, recall)


def _by_tiles(points: Tensor, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return exact (similarities, rows, least), computed on the CPU."""
    count = len(points)
    rows, similarities = np.full((count, k), -1, np.int32), np.full((count, k), BELOW_ALL, np.float32)
    rows[:, 0], similarities[:, 0] = np.arange(count), 1
    state = (rows, similarities, similarities[:, -1].copy(), np.full(count, -BELOW_ALL, np.float32))
    with thread_pool() as pool:
        share = -(-TILE // torch.get_num_threads())
        for top, left, tile in _tiles(points):
            tasks = in_blocks(partial(take_rows, tile, top, left, *state), tile.shape[0], share)
            if top != left:
                tasks += in_blocks(partial(take_columns, tile, top, left, *state), tile.shape[1], share)
            side_by_side(pool, tasks)
    return similarities, rows, state[-1]


def _tiles(points: Tensor) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (first row, first column, similarities (≤ TILE, ≤ TILE), valid until the next) on and above the diagonal.

    They come in an order in which every point meets the others by ascending row: a later one does not displace one that
    is as similar.
    """
    held = points.new_empty(TILE * TILE)
    for left in range(0, len(points), TILE):
        columns = points[left : left + TILE]
        for top in range(0, left + 1, TILE):
            part = points[top : top + TILE]
            tile = held[: len(part) * len(columns)].view(len(part), len(columns))
            yield top, left, torch.mm(part, columns.t(), out=tile).numpy()


def _by_blocks(points: Tensor, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return exact (similarities, rows, least) on any device: products with blocks of rows, and their top k."""
    block = max(1, BLOCK_ENTRIES // len(points))
    parts = []
    for start in range(0, len(points), block):
        with tf32(False):
            scores = points[start : start + block] @ points.t()
        values, names = scores.topk(k)
        parts.append((values.cpu(), names.int().cpu(), scores.amin(dim=1).cpu()))
    similarities, rows, least = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return similarities, rows, least


def _by_faiss(points: Tensor, k: int, approximate: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return (similarities, rows) from a flat index, or from an inverted file."""
    faiss = require_faiss()
    count, width = points.shape
    index = faiss.IndexFlatIP(width)
    if approximate:
        cells = max(1, min(round(CELLS_PER_ROOT * count**0.5), count // POINTS_PER_CELL))
        index = faiss.IndexIVFFlat(index, width, cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = POINTS_PER_CELL
        index.nprobe = PROBED
    if faiss.get_num_gpus():
        index = faiss.index_cpu_to_all_gpus(index)
    array = points.cpu().numpy()
    if approximate:
        index.train(array)
    index.add(array)
    similarities, rows = index.search(array, k)
    return similarities, rows.astype(np.int32)


def require_faiss() -> Any:
    """Return the module faiss.

    Raises:
        UserError: faiss is not installed or cannot be loaded.
    """
    if find_spec("faiss") is None:
        raise missing_extra("a search with faiss", "faiss", ["faiss-cpu"], WITHOUT_FAISS)
    try:
        import faiss
    except ImportError as error:
        raise UserError(f"faiss cannot be loaded ({error}): install it again, or {WITHOUT_FAISS}") from error
    return faiss


def _itself_first(similarities: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lists in the order that `Neighbours` specifies, each with its own point."""
    own = rows == np.arange(len(rows))[:, None]
    own[:, -1] |= ~own.any(axis=1)  # crowded out by equal points: it takes the place of the last one
    rows = np.where(own, np.arange(len(rows))[:, None], rows).astype(np.int32)
    similarities = np.where(own, np.inf, np.where(rows < 0, BELOW_ALL, similarities)).astype(np.float32)
    order = np.lexsort((rows, -similarities), axis=-1)
    rows, similarities = np.take_along_axis(rows, order, 1), np.take_along_axis(similarities, order, 1)
    similarities[:, 0] = 1
    return similarities, rows


def check_sample(points: Tensor, similarities: np.ndarray, rows: np.ndarray, exact: bool) -> float:
    """Compare the lists of a few points with a dense product, and return their recall in [0, 1].

    A neighbour counts as found if the list contains it, or another point that is as near.

    Raises:
        UserError: A similarity is not that of its pair, or (`exact`) a nearer point is missing.
    """
    k = rows.shape[1]
    sample = np.sort(np.random.default_rng(0).permutation(len(points))[:SAMPLE])
    with tf32(False):
        scores = points[torch.from_numpy(sample).to(points.device)] @ points.t()
    found = torch.from_numpy(rows[sample].astype(np.int64)).to(points.device)
    claimed = torch.from_numpy(similarities[sample]).to(points.device)
    true = scores.gather(1, found.clamp(min=0)).where(found >= 0, BELOW_ALL)
    wrong = int(((true - claimed).abs() > TOLERANCE).any(dim=1).sum())
    best = scores.topk(k).values
    hits = (true >= best[:, -1:] - TOLERANCE).float().mean().item()
    missing = int((true.sort(dim=1, descending=True).values < best - TOLERANCE).any(dim=1).sum()) if exact else 0
    if wrong or missing:
        raise UserError(
            f"the neighbour search returned wrong neighbours for {max(wrong, missing)} of {len(sample)} points "
            "that were checked: use the engine torch, or one GPU (CUDA_VISIBLE_DEVICES)"
        )
    return 1.0 if exact else hits
