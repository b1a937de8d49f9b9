"""A lease that lets one process at a time write to a folder on storage shared by several machines."""

import contextlib
import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from rayreid.deferral import answered_signals, deferred_signals
from rayreid.errors import UserError
from rayreid.storage.lease_place import UNREADABLE, Holder, LeasePlace, here

_BEAT_SECONDS = 2.0
_STALE_SECONDS = 30.0
_CONFIRM_SECONDS = 2 * _BEAT_SECONDS
_LONGEST_LOOK_SECONDS = 1.5
_SETTLE_SECONDS = 0.1
_NS = 1e9


class LeaseLostError(UserError):
    """Raised by a process that writes to a folder although another one has taken over its lease."""


class Lease:
    """A lock file that its holder touches every 2 s; that of a holder which is gone is taken over.

    A holder on the same boot of the same machine is gone if its process no longer exists; while the process exists, its
    lease is never taken, whatever the clocks say. A holder elsewhere is gone if the lock has not been touched for 30 s
    by the storage's clock (the time stamp of a file just written beside the lock) and, so that a jump of that clock
    does not count, is not touched for more than a beat while this process watches. If the storage's clock is
    behind the lock, 30 s of watching decide.

    Args:
        path: The lock file.
        poll: Seconds between checks while another run holds the lock.
        waiting: Called once if a live holder has to be waited for.
        place: The storage and the machine.
    """

    def __init__(
        self,
        path: Path,
        poll: float = 1.0,
        waiting: Callable[[], None] = lambda: None,
        place: LeasePlace | None = None,
    ):
        self.path = path
        self.poll = poll
        self._place = place or LeasePlace(path)
        self._waiting, self._told = waiting, False
        self._token = uuid.uuid4().hex
        self._watches: dict[str, _Watch] = {}
        self._released = threading.Event()
        self._beat = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> "Lease":
        try:
            self.take()
            with deferred_signals():
                self._beat.start()
        except BaseException:  # as Ctrl-C: a lock of a process that lives on would never be taken over
            self._released.set()
            self.release()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with deferred_signals():
            self._released.set()
            self._beat.join()
            self.release()

    @property
    def token(self) -> str:
        """Return the text by which the lock file names this holder."""
        return self._token

    def take(self) -> None:
        """Wait until the lock is this process's; nothing touches it yet."""
        while not self.take_free():
            with contextlib.suppress(FileNotFoundError):  # a run that was refused has removed the folder meanwhile
                self._bury_or_wait()

    def take_free(self) -> bool:
        """Take the lock if there is none, and return whether it is this process's; nothing touches it yet."""
        return self._place.create(self._place.me(self._token)) and self._settled()

    def clear(self, seconds: float) -> bool:
        """Remove the lock of a holder that is gone, and return whether there is none any more.

        Args:
            seconds: How long to watch a holder of which only the time stamp tells.
        """
        until = self._place.monotonic() + seconds
        while not self._bury_if_dead():
            if self._place.monotonic() >= until:
                return False
            self._place.sleep(self.poll)
        return self._place.holder() is None

    def release(self) -> None:
        """Remove the lock, unless it was taken over."""
        if self.held():
            self._place.remove()

    def held(self) -> bool:
        """Return whether the lock is still this holder's."""
        holder = self._place.holder()
        return holder is not None and holder.token == self._token

    def beat(self) -> None:
        """Touch the lock once; one that was taken over is its new holder's to touch."""
        with contextlib.suppress(OSError, UserError):  # the storage may fail for a moment
            if self.held():
                self._place.touch()

    def _settled(self) -> bool:
        """Wait until nobody is burying an earlier holder, and return whether the lock is still this process's.

        The burial of a holder that woke and released the lock at the last moment would hit this one.
        """
        while burials := self._place.burials():
            for token in burials:
                self._end_if_stale(token)
            self.beat()
            self._place.sleep(min(self.poll, _SETTLE_SECONDS))
        return self.held()

    def _keep(self) -> None:
        while not self._place.wait(self._released, _BEAT_SECONDS):
            self.beat()

    def _bury_or_wait(self) -> None:
        if self._bury_if_dead():
            return
        if not self._told:
            self._told = True
            self._waiting()
        with answered_signals():
            self._place.sleep(self.poll)

    def _bury_if_dead(self) -> bool:
        """Remove the lock of a holder that is gone; only one of several waiting processes succeeds."""
        holder = self._place.holder()
        if holder is None:
            return True
        if not self._process_gone(holder):
            return False
        # Only the process that creates the tombstone may remove that holder's lock. A latecomer finds the lock
        # gone, or held by another process.
        if not self._place.bury(holder.token):
            self._end_if_stale(holder.token)
            return False
        try:
            found = self._place.holder()
            if found is not None and found.token == holder.token:
                self._place.set_aside() if found.token == UNREADABLE else self._place.remove()
        finally:
            self._place.end_burial(holder.token)
        return True

    def _process_gone(self, holder: Holder) -> bool:
        alive = self._place.alive(holder)
        return self._silent("", holder, self._place.written()) if alive is None else not alive

    def _end_if_stale(self, token: str) -> None:
        """End a burial whose creator is gone, too."""
        if self._silent(token, token, self._place.buried(token)):
            self._place.end_burial(token)

    def _silent(self, file: str, content: object, written: int | None) -> bool:
        """Return whether a file about which only its time stamp tells has not been touched for too long."""
        if written is None:
            return False
        now, seen = self._place.now(), (content, written)
        if file not in self._watches or self._watches[file].seen != seen:
            self._watches[file] = _Watch(seen, self._place.monotonic(), now)
        return self._watches[file].too_long(self._place.monotonic(), now, written)


class _Watch:
    """How long this process has seen a file untouched.

    Only looks that follow one another soon count: while this process was suspended, or the storage stood still, a live
    holder may have been, too.
    """

    def __init__(self, seen: tuple[object, int], began: float, storage_began: int):
        self.seen = seen
        self._began = self._looked = began
        self._storage_began = storage_began
        self._watched = 0.0

    def too_long(self, now: float, storage_now: int, written: int) -> bool:
        """Return whether the file is stale.

        Args:
            now: Seconds by this machine's own clock.
            storage_now: The time by the storage's clock, in ns.
            written: The file's time stamp, in ns.
        """
        self._watched += min(now - self._looked, _LONGEST_LOOK_SECONDS)
        self._looked = now
        skew = (storage_now - self._storage_began) / _NS - (now - self._began)  # the storage's clock has jumped so far
        age = (storage_now - written) / _NS - max(0.0, skew)
        return self._watched >= (_CONFIRM_SECONDS if age > _STALE_SECONDS else _STALE_SECONDS)


@dataclass(frozen=True)
class Fence:
    """The right of one holder of a lease to write to a folder; it travels to the holder's workers.

    Attributes:
        path: The lock file.
        token: The holder's token.
        number: Number of the holder; each has a higher one than those before it.
    """

    path: Path
    token: str
    number: int

    def __call__(self) -> None:
        """Check that the lease is still this holder's.

        Raises:
            LeaseLostError: Another process has taken the lease over.
        """
        check_held(LeasePlace(self.path), self.token)


def check_held(place: LeasePlace, token: str) -> None:
    """Check that a lease names a holder.

    Raises:
        LeaseLostError: It does not.
    """
    holder = place.holder()
    if holder is None:
        raise LeaseLostError(
            f"{place.path.parent}: the lease of this run is gone: another run took this artifact over while this one "
            "stood still, and has ended, or the folder was removed; run again"
        )
    if holder.token != token:
        raise LeaseLostError(
            f"{place.path.parent}: another run took this artifact over while this one stood still; run again"
        )


def held_by_another(path: Path) -> bool:
    """Return whether a lock file names a process other than this one."""
    holder = LeasePlace(path).holder()
    return holder is not None and holder.token != UNREADABLE and (holder.host, holder.pid) != (here(), os.getpid())
