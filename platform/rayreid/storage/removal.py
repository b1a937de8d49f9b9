"""Deletion of an artifact's folder, under its lease."""

import contextlib
import shutil
from pathlib import Path

from rayreid.files import make_folder
from rayreid.state_files import aside_of
from rayreid.storage.contents import LEASE, RECORD
from rayreid.storage.lease import Lease

PATIENCE_SECONDS = 10.0
"""How long to watch the holder of a lease of which only the time stamp tells whether it lives."""


def delete_artifact(folder: Path, complete: bool) -> bool:
    """Delete the folder of an artifact, and return whether that succeeded; links in it are not followed.

    Its files are moved aside first: see `take_aside`.

    Args:
        folder: The folder.
        complete: Whether the artifact is expected to be complete.
    """
    aside = take_aside(folder, complete)
    if aside is None:
        return False
    shutil.rmtree(aside)
    return True


def take_aside(folder: Path, complete: bool) -> Path | None:
    """Move the files of an artifact to a new folder beside it, and return that folder; None if the artifact is left.

    The record is moved before all other files: a process that is killed meanwhile leaves an artifact that is not
    complete, and a folder `<id>.damaged-…` which can be deleted.

    Args:
        folder: The folder.
        complete: Whether the artifact is expected to be complete. It is left if it is not as expected, because another
            run has taken it up, finished it or deleted it.
    """
    lease = Lease(folder / LEASE)
    if not lease.clear(PATIENCE_SECONDS) or not lease.take_free():
        return None
    aside = aside_of(folder)
    try:
        if (folder / RECORD).exists() is not complete:
            return None
        # Nobody renews the lease here, and deleting a large folder may take longer than it lasts: so all is renamed
        # under it, and deleted without it.
        aside.mkdir()
        for path in sorted(folder.iterdir(), key=lambda path: path.name != RECORD):
            if not lease.held():
                return None
            if path.name != LEASE:
                path.rename(aside / path.name)
    finally:
        lease.release()
        if not complete or not (folder / RECORD).exists():
            with contextlib.suppress(OSError):  # another run waits for the lease there, or files are left
                folder.rmdir()
    return aside


def put_back(aside: Path, folder: Path) -> bool:
    """Move the files that `take_aside` moved to their places, the record last; return whether that succeeded.

    They are left aside if another run has begun to make the artifact.
    """
    make_folder(folder)
    lease = Lease(folder / LEASE)
    if not lease.take_free():
        return False
    try:
        if [path for path in folder.iterdir() if path.name != LEASE and not path.name.startswith(".")]:
            return False
        for path in sorted(aside.iterdir(), key=lambda path: path.name == RECORD):
            if not lease.held():
                return False
            path.rename(folder / path.name)
    finally:
        lease.release()
    aside.rmdir()
    return True
