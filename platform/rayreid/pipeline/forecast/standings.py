"""How far an artifact is: complete, being made, half made, or not begun; read without writing or taking a lease."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayreid.errors import UserError, escaped
from rayreid.storage.artifacts import Artifact
from rayreid.storage.contents import LEASE, parsed
from rayreid.storage.lease_place import LeasePlace
from rayreid.training.checkpoint import Checkpoints

_STALE_NS = 60 * 10**9
"""Age at which the lease of another machine counts as left; a holder touches it every two seconds."""


class State(StrEnum):
    """What a run would do about an artifact."""

    REUSED = "reused"
    RESUMED = "resumed"
    MADE = "made"


@dataclass(frozen=True)
class Standing:
    """How far an artifact is.

    Attributes:
        state: What a run would do about it.
        done: Optimizer steps, or images, that a half-made one has.
        unit: What `done` counts: "steps" or "images".
        fault: Why it is made although something is there: it is damaged, or cannot be read.
        running: Whether another live process is making it.
    """

    state: State
    done: int = 0
    unit: str = ""
    fault: str = ""
    running: bool = False


def standing_of(artifact: Artifact) -> Standing:
    """Return how far an artifact is."""
    try:
        fault = artifact.damage
        if not fault and artifact.complete:
            return Standing(State.REUSED)
    except UserError as error:
        fault = str(error)
    running = is_held(artifact.path / LEASE)
    done, unit = _progress(artifact) if _kept(artifact.path) else (0, "")
    if not done:
        return Standing(State.MADE, fault=escaped(fault), running=running)
    return Standing(State.RESUMED, done, unit, escaped(fault), running)


def is_held(lease: Path) -> bool:
    """Return whether the holder of a lease may be alive; one of another machine is, if it was touched lately."""
    place = LeasePlace(lease)
    try:
        holder, written = place.holder(), place.written()
    except (UserError, OSError):
        return True
    if holder is None or written is None:
        return False
    alive = place.alive(holder)
    return time.time_ns() - written < _STALE_NS if alive is None else alive


def _kept(folder: Path) -> bool:
    """Return whether a run keeps the whole files in a folder: not beside a record that is unreadable or another's."""
    try:
        return parsed(folder).id in ("", folder.name)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (UserError, OSError):
        return False


def _progress(artifact: Artifact) -> tuple[int, str]:
    """Return how many optimizer steps or images of an unfinished artifact are on the disk."""
    folder = artifact.path
    if artifact.stage in ("pretrain", "finetune", "adapt"):
        return Checkpoints(folder / "checkpoints").sealed(), "steps"
    places = {"ingest": ("shards", "*.parquet", _rows), "score": ("scores", "*.parquet", _rows)}
    places |= {"features": ("features", "*.npy", _vectors), "quality": ("measures", "*.npy", _vectors)}
    if artifact.stage not in places:
        return 0, ""
    inner, pattern, count = places[artifact.stage]
    return sum(_counted(path, count) for path in sorted((folder / inner).glob(pattern))), "images"


def _counted(path: Path, count: Callable[[Path], int]) -> int:
    with contextlib.suppress(OSError, ValueError, pa.ArrowException):  # a torn file is made again
        return count(path)
    return 0


def _rows(path: Path) -> int:
    return int(pq.read_metadata(path).num_rows)


def _vectors(path: Path) -> int:
    return len(np.load(path, mmap_mode="r"))
