"""How well the kept images cover others: the nearest kept image of each, for many nested cuts in one pass."""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from rayreid.selection.features import Features
from rayreid.selection.steps import Steps, blocks, by_step


def nearest_kept(
    images: npt.NDArray[np.floating],
    pool: Features,
    steps: Steps,
    cuts: int,
    device: torch.device,
    own: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.float32]:
    """Return the cosine of each image to the nearest image that each cut of each selection keeps.

    Args:
        images: Features (M, D) of any length.
        pool: Features of the pool, N of them, of any length.
        steps: First cut that keeps each image of the pool, for each selection (S, N).
        cuts: Number of cuts, F.
        device: Device on which to compute.
        own: Index rows (M,) of these images in the pool, which are not compared with themselves.

    Returns:
        Cosines (S, F, M); −inf where a cut keeps no (other) image.
    """
    best = torch.full((len(steps), cuts, len(images)), -torch.inf, device=device)
    if not len(images):
        return best.cpu().numpy()
    queries = F.normalize(torch.from_numpy(images.astype(np.float32)).to(device))
    for rows, found in blocks(pool, device):
        cosines = queries @ F.normalize(found).T
        if own is not None:
            _, mine, here = np.intersect1d(own, rows, assume_unique=True, return_indices=True)
            cosines[torch.from_numpy(mine), torch.from_numpy(here)] = -torch.inf
        for one, number, places in by_step(steps[:, rows], cuts):
            nearest = cosines[:, torch.from_numpy(places).to(device)].amax(dim=1)
            best[one, number] = torch.maximum(best[one, number], nearest)
    return best.cummax(dim=1).values.cpu().numpy()
