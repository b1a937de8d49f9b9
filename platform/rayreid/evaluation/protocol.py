"""Checks of what the Market-1501 protocol can find, from labels alone, before features are computed."""

import numpy as np
import numpy.typing as npt

from rayreid.errors import UserError
from rayreid.evaluation.ranking import JUNK, UNKNOWN_CAMERA


def findable(
    query_pids: npt.ArrayLike, gallery_pids: npt.ArrayLike, query_camids: npt.ArrayLike, gallery_camids: npt.ArrayLike
) -> np.ndarray:
    """Return which queries have a true match: a gallery image of their identity, not known to be by their camera.

    Args:
        query_pids: (Q,) int, −1 for junk.
        gallery_pids: (G,) int, −1 for junk.
        query_camids: (Q,) int, −1 for unknown.
        gallery_camids: (G,) int, −1 for unknown.

    Returns:
        (Q,) bool.
    """
    query, gallery = (
        np.stack([np.asarray(pids, np.int64), np.asarray(camids, np.int64)], axis=1)
        for pids, camids in ((query_pids, query_camids), (gallery_pids, gallery_camids))
    )
    same_person = _count(gallery[:, :1], query[:, :1])
    same_both = np.where(query[:, 1] == UNKNOWN_CAMERA, 0, _count(gallery, query))
    found: np.ndarray = (query[:, 0] != JUNK) & (same_person > same_both)
    return found


def check_findable(
    query_pids: npt.ArrayLike, gallery_pids: npt.ArrayLike, query_camids: npt.ArrayLike, gallery_camids: npt.ArrayLike
) -> None:
    """Refuse query and gallery in which no query has a true match.

    Raises:
        UserError: There is no match; the message says so if a single camera is the reason.
    """
    if findable(query_pids, gallery_pids, query_camids, gallery_camids).any():
        return
    total = len(np.asarray(query_pids))
    cameras = np.unique(np.concatenate([np.asarray(query_camids), np.asarray(gallery_camids)]))
    if len(cameras) == 1 and cameras[0] != UNKNOWN_CAMERA:
        raise UserError(
            f"none of the {total} queries can be found: all images of query and gallery are by camera {cameras[0]}, "
            "and only a match by another camera counts; set cameras: ignore beside its root"
        )
    raise UserError(
        f"none of the {total} queries has a true match in the gallery (same pid seen by another camera): check that "
        "query and gallery come from the same dataset and that camera ids are set"
    )


def _count(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return how often each of the wanted rows (Q, n) occurs among rows (G, n)."""
    _, codes = np.unique(np.concatenate([rows, wanted]), axis=0, return_inverse=True)
    codes = codes.reshape(-1)
    counts: np.ndarray = np.bincount(codes[: len(rows)], minlength=codes.max() + 1)[codes[len(rows) :]]
    return counts
