"""The probe: the retrieval performance of raw features while a backbone is still being pre-trained.

The loss of self-supervised training does not show whether it learns anything useful. Therefore, as DINO was judged by
nearest neighbours (Caron et al., arXiv 2104.14294, §3.2), a fixed part of a labelled train split is searched in another
part, by the Market-1501 protocol and without any training. Query and gallery stay unseen.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from rayreid.data.ahead import in_order
from rayreid.data.augment.reid_transforms import ReIDTest
from rayreid.data.batch import ImageBatch
from rayreid.data.store.store import ImageStore
from rayreid.errors import UserError
from rayreid.evaluation.ranking import UNKNOWN_CAMERA
from rayreid.evaluation.retrieval import evaluate_retrieval
from rayreid.evaluation.spread import effective_rank
from rayreid.training import parallel
from rayreid.training.loop import Precision, autocast

QUERY_SHARE = 6
"""One in this many images of an identity, rounded up, is a query; the others are gallery."""

NOTHING_TO_FIND = (
    "no identity of the split train has two images (by different cameras, where these are known), so a probe finds "
    "nothing; set pretrain.probe_every=0"
)

_SEED = 0  # independent of the run's seed: runs with different seeds are probed on the same images
_BATCH = 128  # images per forward pass; there may be little memory left besides a training state


@dataclass(frozen=True)
class Probe:
    """Labelled images, some of which are to be found among the others.

    Attributes:
        rows: int64 (N,), index rows in the store, the queries first.
        pids: int32 (N,).
        camids: int16 (N,), −1 for unknown.
        queries: Number of queries.
    """

    rows: np.ndarray
    pids: np.ndarray
    camids: np.ndarray
    queries: int

    def score(self, features: torch.Tensor) -> dict[str, float]:
        """Return the scores of features (N, D) in the order of `rows`.

        Returns:
            `probe_mAP` and `probe_rank1`, in [0, 1], and `probe_effective_rank`, the effective rank (see `spread`).

        Raises:
            UserError: The features are not finite.
        """
        n = self.queries
        report = evaluate_retrieval(
            features[:n], features[n:], self.pids[:n], self.pids[n:], self.camids[:n], self.camids[n:], max_rank=1
        )
        return {
            "probe_mAP": report.mAP,
            "probe_rank1": report.rank(1),
            "probe_effective_rank": effective_rank(features),
        }


def choose_probe(pids: np.ndarray, camids: np.ndarray, rows: np.ndarray, images: int) -> Probe:
    """Return a probe drawn from a train split, with whole identities, so that it has all matches of a query.

    Identities with one image, or with all images from one known camera, are left out: the protocol does not allow to
    find them. The draw depends only on the labels.

    Args:
        pids: Identities of the index, int (rows of the store,).
        camids: Cameras of the index, int (rows of the store,).
        rows: Index rows of the split.
        images: Largest number of images to draw; two identities are drawn even if they have more.

    Raises:
        UserError: No identity can be found.
    """
    rng = np.random.default_rng(_SEED)
    identities = findable_identities(pids[rows], camids[rows])
    if not len(identities):
        raise UserError(NOTHING_TO_FIND)
    rows = rng.permutation(rows[np.isin(pids[rows], identities)])
    rows = rows[np.argsort(pids[rows], kind="stable")]  # an identity's images together, in a random order
    groups = np.split(rows, np.flatnonzero(np.diff(pids[rows])) + 1)
    groups = [groups[number] for number in rng.permutation(len(groups))]
    fitting = max(2, int(np.searchsorted(np.cumsum([len(group) for group in groups]), images, side="right")))
    queries, gallery = [], []
    for group in groups[:fitting]:
        few = -(-len(group) // QUERY_SHARE)
        queries.append(group[:few])
        gallery.append(group[few:])
    chosen = np.concatenate(queries + gallery)
    return Probe(chosen, pids[chosen], camids[chosen], sum(map(len, queries)))


def findable_identities(pids: np.ndarray, camids: np.ndarray) -> np.ndarray:
    """Return the identities with two images, from different cameras if these are known.

    Whichever of them is a query, the protocol counts at least one match.

    Args:
        pids: int (N,); negative ones belong to nobody.
        camids: int (N,), −1 for unknown.

    Returns:
        (n,) ascending.
    """
    order = np.argsort(pids, kind="stable")
    identities, starts, counts = np.unique(pids[order], return_index=True, return_counts=True)
    if not len(identities):
        return identities
    lowest, highest = (extreme.reduceat(camids[order], starts) for extreme in (np.minimum, np.maximum))
    told_apart = (lowest != highest) | (lowest == UNKNOWN_CAMERA)
    return identities[(identities >= 0) & (counts > 1) & told_apart]


def extract(
    backbone: nn.Module,
    store: ImageStore,
    rows: np.ndarray,
    transform: ReIDTest,
    device: torch.device,
    precision: Precision = "fp32",
    threads: int = 2,
) -> torch.Tensor:
    """Return the features of a backbone in training. Each worker computes a share, and all workers get all features.

    The backbone is in eval mode meanwhile; afterwards, each of its modules is in its previous mode. No random number is
    drawn, so training continues as if the features had not been computed.

    Args:
        backbone: (B, 3, H, W) → (B, D), equal on all workers.
        store: Store of the images.
        rows: Index rows, int (N,), the same on all workers.
        transform: Resize and normalisation.
        device: Device of the backbone.
        precision: Precision of the forward pass.
        threads: Number of decoding threads.

    Returns:
        float32 (N, D) on `device`, in the order of `rows`.

    Raises:
        UserError: An image cannot be decoded.
    """
    width = int(backbone.num_features)  # type: ignore[arg-type]  # Module declares no attributes
    features = torch.zeros(len(rows), width, device=device)
    mine = np.arange(parallel.rank(), len(rows), parallel.world_size())
    # No inference mode: tensors that a module keeps from such a pass could not be used in training.
    with _evaluating(backbone), torch.no_grad():
        for places, images in _decoded(store, rows, mine, threads, pinned=device.type == "cuda"):
            with autocast(precision, device):
                features[places] = backbone(transform(images.to(device, non_blocking=True))).float()
    return parallel.all_reduce_sum(features)


def _decoded(
    store: ImageStore, rows: np.ndarray, places: np.ndarray, threads: int, pinned: bool
) -> Iterator[tuple[torch.Tensor, ImageBatch]]:
    """Yield batches of some places in `rows`, decoded in advance; see `ImageBatch.collate` for `pinned`."""

    def load(part: np.ndarray) -> tuple[torch.Tensor, ImageBatch]:
        return torch.from_numpy(part), ImageBatch.collate(store.images(rows[part].tolist()), pinned)

    parts = [places[start : start + _BATCH] for start in range(0, len(places), _BATCH)]
    with ThreadPoolExecutor(threads) as pool:
        for _, loaded in in_order(pool, load, parts, threads + 1):
            yield loaded.result()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
