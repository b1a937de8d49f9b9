"""Whose turn it is to send the entries of a run: that of one process at a time, by a lease in the run's outbox."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rayreid.deferral import answered_signals
from rayreid.errors import UserError
from rayreid.storage.contents import LEASE
from rayreid.storage.lease import Lease
from rayreid.storage.lease_place import LeasePlace

_POLL_SECONDS = 0.05
_PATIENCE_SECONDS = 45.0  # longer than a lease of a process on another machine that has died
_BUSY_SECONDS = 30.0  # nobody waits again for so long after that patience was in vain
_SILENT_NS = 30 * 10**9  # a live holder touches its lease far more often
_CONFIRM_SECONDS = 6.0
_HELD: set[str] = set()
"""Tokens of the leases that this process holds, or is about to take."""


class Turns:
    """The turns of this process at the outboxes of a root.

    Args:
        tell: Called with a line for the user when another process takes too long.
    """

    def __init__(self, tell: Callable[[str], None]):
        self._tell = tell
        self._busy_until: dict[Path, float] = {}

    @contextlib.contextmanager
    def taken(self, folder: Path, waits: bool) -> Iterator[Lease | None]:
        """Yield the lease of an outbox, held within the block; None if another process keeps it.

        Args:
            folder: Folder of the outbox.
            waits: Whether to wait for a process that is sending.
        """
        lease = Lease(folder / LEASE, poll=_POLL_SECONDS)
        _remove_forgotten(lease.path)
        if not self._is_free(lease, folder, waits):
            yield None
            return
        _HELD.add(lease.token)
        try:
            with lease:
                yield lease
        finally:
            _HELD.discard(lease.token)

    def _is_free(self, lease: Lease, folder: Path, waits: bool) -> bool:
        """Return whether no other process has its turn; tell the user if that took too long."""
        waits = waits and time.monotonic() >= self._busy_until.get(folder, 0.0)
        patience = _PATIENCE_SECONDS if waits else 0.0 if is_held(lease.path) else _CONFIRM_SECONDS
        with answered_signals():
            free = lease.clear(patience)
        if free:
            return True
        if waits:
            self._busy_until[folder] = time.monotonic() + _BUSY_SECONDS
            self._tell(
                f"another process is sending what was logged to MLflow run {folder.name}: the rest is kept, and "
                "delivered later, by the next command at the latest"
            )
        return False


def is_held(lease: Path) -> bool:
    """Return whether another process, which seems to be alive, holds a lease."""
    place = LeasePlace(lease)
    try:
        holder, written = place.holder(), place.written()
    except (FileNotFoundError, NotADirectoryError):  # its folder is gone
        return False
    except (OSError, UserError):  # it cannot be looked at: who it belongs to sends what is left
        return True
    if holder is None or written is None:
        return False
    alive = place.alive(holder)
    return place.now() - written < _SILENT_NS if alive is None else alive and holder.pid != os.getpid()


def _remove_forgotten(lease: Path) -> None:
    """Remove a lease of this process that it could not remove when it was done: nobody else would while it lives."""
    place = LeasePlace(lease)
    with contextlib.suppress(OSError, UserError):
        holder = place.holder()
        if holder is not None and holder.pid == os.getpid() and place.alive(holder) and holder.token not in _HELD:
            place.remove()
