"""Deletion of an artifact's folder, under its lease."""

import contextlib
import shutil
from pathlib import Path

from rayreid.state_files import aside_of
from rayreid.storage.contents import LEASE, RECORD
from rayreid.storage.lease import Lease

PATIENCE_SECONDS = 10.0
"""How long to watch the holder of a lease of which only the time stamp tells whether it lives."""


def delete_artifact(folder: Path, complete: bool) -> bool:
    """Delete the folder of an artifact, and return whether that succeeded; links in it are not followed.

    Its files are moved aside first, the record before all others: a process that is killed meanwhile leaves an artifact
    that is not complete, and a folder `<id>.damaged-…` which can be deleted.

    Args:
        folder: The folder.
        complete: Whether the artifact is expected to be complete. It is left if it is not as expected, because another
            run has taken it up, finished it or deleted it.
    """
    lease = Lease(folder / LEASE)
    if not lease.clear(PATIENCE_SECONDS) or not lease.take_free():
        return False
    discarded = aside_of(folder)
    try:
        if (folder / RECORD).exists() is not complete:
            return False
        # Nobody renews the lease here, and deleting a large folder may take longer than it lasts: so all is renamed
        # under it, and deleted without it.
        discarded.mkdir()
        for path in sorted(folder.iterdir(), key=lambda path: path.name != RECORD):
            if not lease.held():
                return False
            if path.name != LEASE:
                path.rename(discarded / path.name)
    finally:
        lease.release()
        if not complete or not (folder / RECORD).exists():
            with contextlib.suppress(OSError):  # another run waits for the lease there, or files are left
                folder.rmdir()
    shutil.rmtree(discarded)
    return True
