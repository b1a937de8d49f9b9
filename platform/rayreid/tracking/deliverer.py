"""Delivery to MLflow: everything is written to the disk first, and sent from there by one function, in order."""

import contextlib
import errno
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayreid.deferral import answered_signals, deferred_signals
from rayreid.errors import UserError
from rayreid.files import sync_folder
from rayreid.masking import masked
from rayreid.storage.contents import LEASE
from rayreid.storage.lease import Lease
from rayreid.storage.metrics_log import MetricsFeed
from rayreid.tracking.entries import entry
from rayreid.tracking.outage import Outage, reason
from rayreid.tracking.outbox import Entry, Outbox
from rayreid.tracking.store import send
from rayreid.tracking.turns import Turns, is_held

if TYPE_CHECKING:
    from mlflow import MlflowClient

_STUCK_SECONDS = 30.0  # an entry that failed although MLflow answers is not tried again so soon
_REFUSED_BY_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)


class Deliverer:
    """Keeps the entries of a tracker's runs on the disk until MLflow has them, and sends them.

    Entries of a run are sent in the order in which they were put, by one process at a time and by one thread of it. If
    a process dies after it has sent an entry and before it has dropped it, the next one sends it again; each kind of
    entry may be sent twice without a difference (see `rayreid.tracking.store.send`).

    Args:
        folder: Folder of the outboxes, one for each run.
        uri: URI of the tracking store.
        outage: Knows whether the store is reachable.
    """

    def __init__(self, folder: Path, uri: str, outage: Outage):
        self.folder = folder
        self._uri = masked(uri)
        self._outage = outage
        self._lock = threading.RLock()
        self._followed: dict[str, tuple[str, MetricsFeed]] = {}
        self._complained: set[object] = set()
        self._stuck_until: dict[Path, float] = {}
        self._runs: set[str] = set()
        self._turns = Turns(outage.tell)

    def log(
        self, client: "MlflowClient", run: str, kind: str, what: Any, name: str = "", payload: bytes | None = None
    ) -> None:
        """Put an entry, and send it after all that wait before it, unless the store is unreachable.

        Args:
            client: Client of the store.
            run: Id of the run.
            kind: Kind of the entry.
            what: Its content, as plain JSON values.
            name: Name of the payload's file.
            payload: Content of the file that belongs to the entry.

        Raises:
            Exception: This entry was refused; it is dropped.
        """
        self._runs.add(run)
        # All of it, so that another thread's entry cannot be sent before an earlier one has its name.
        with self._lock, deferred_signals():
            own = self._outbox(run).put({"uri": self._uri, "kind": kind, "what": what}, name, payload)
            self.deliver(client, run, own)
            if own.exists():  # it waits, and its name must not be lost with the machine's power
                with contextlib.suppress(FileNotFoundError):  # another process has just sent it
                    for folder in (own.parent, self.folder, self.folder.parent):
                        sync_folder(folder)

    def deliver(self, client: "MlflowClient", run: str, own: Path | None = None, waits: bool = True) -> None:
        """Send the entries of a run for as long as the store answers.

        Args:
            client: Client of the store.
            run: Id of the run.
            own: The entry whose refusal is the caller's; that of any other is told to the user.
            waits: Whether to wait for another process that is sending entries of this run.

        Raises:
            Exception: The caller's own entry was refused, or the storage refuses it.
        """
        box = self._outbox(run)
        with self._lock, deferred_signals():
            if self._outage.lasts():
                return
            self._announce_journals(run, box)
            if not any(map(self._is_due, box.entries())):
                return
            try:
                with self._turns.taken(box.folder, waits) as turn:
                    if turn is not None:
                        self._send_all(client, run, box, turn, own)
            finally:
                box.clear_away()

    def deliver_all(self, client: "MlflowClient") -> None:
        """Send the entries of all runs that no other process is sending, and remove what killed processes left."""
        for folder in self._folders():
            self.deliver(client, folder.name, waits=False)
            Lease(folder / LEASE).clear(0.0)  # of a process that was killed when all was sent
            self._outbox(folder.name).sweep()

    def undelivered(self) -> int:
        """Return how many entries wait: those of all runs if the store is away, or else of this process's runs."""
        names = {folder.name for folder in self._folders()}
        return sum(
            self._is_due(waiting)
            for name in (names if self._outage.told else names & self._runs)
            for waiting in self._outbox(name).entries()
        )

    def follow(self, run: str, feed: MetricsFeed) -> None:
        """Send the rows that a feed reads, from now on, with each delivery of its run.

        If this process dies, another one sends the rest of the journal.
        """
        with self._lock:
            self._followed[str(feed.path.absolute())] = run, feed
            self._announce_journals(run, self._outbox(run))

    def unfollow(self, client: "MlflowClient", run: str, feed: MetricsFeed) -> None:
        """Send what is left of a journal to which nobody writes any more."""
        with self._lock:
            self._announce_journals(run, self._outbox(run))
            self._followed.pop(str(feed.path.absolute()), None)
            self.deliver(client, run)

    def _announce_journals(self, run: str, box: Outbox) -> None:
        """Put an entry for each journal that this process follows and that has none.

        Another process may have dropped it: one that began to send what is left of a killed training, and stood still
        until this one had resumed it.
        """
        followed = [path for path, (own, _) in self._followed.items() if own == run]
        if followed:
            known = [one.content["what"] for one in box.entries() if _is_journal(one)]
            for path in followed:
                if path not in known:
                    box.put({"uri": self._uri, "kind": "journal", "what": path})

    def _folders(self) -> list[Path]:
        return [folder for folder in sorted(self.folder.glob("*")) if folder.is_dir()]

    def _outbox(self, run: str) -> Outbox:
        return Outbox(self.folder / run, entry)

    def _send_all(self, client: "MlflowClient", run: str, box: Outbox, lease: Lease, own: Path | None) -> None:
        for waiting in filter(self._is_due, box.entries()):
            with answered_signals():  # many may wait
                pass
            if not lease.held():  # this process stood still, and another one has gone on
                return
            if time.monotonic() < self._stuck_until.get(waiting.path, 0.0):
                if _has_an_order(waiting):
                    return
                continue
            try:
                self._send(client, run, waiting)
            except Exception as error:
                if self._is_stuck(client, run, waiting, error, own):
                    if _has_an_order(waiting):
                        return
                    continue
                if self._outage.began(error):
                    return
                self._give_up(run, waiting, error, own)

    def _is_stuck(self, client: "MlflowClient", run: str, waiting: Entry, error: Exception, own: Path | None) -> bool:
        """Return whether only this entry cannot be sent for now; the user is told once, and it is tried again later.

        The storage of the entry's file may refuse, or MLflow may answer everything else: then it is no outage, and
        entries of other runs can be sent.
        """
        refused = isinstance(error, UserError) or getattr(error, "errno", None) in _REFUSED_BY_STORAGE
        if refused and waiting.path == own:
            raise error
        if not refused and not (self._outage.fails_once(error) and _answers(client)):
            return False
        if waiting.path not in self._complained:
            self._outage.tell(
                f"{waiting.path}: this entry cannot be sent to MLflow for now ({reason(error)}); it is kept, and the "
                "next commands try again; delete it to give it up"
            )
        self._complained.add(waiting.path)
        self._stuck_until[waiting.path] = time.monotonic() + _STUCK_SECONDS
        return True

    def _is_due(self, waiting: Entry) -> bool:
        """Return whether an entry is for this store, and this process may send it now."""
        if masked(waiting.content["uri"]) != self._uri:
            return False
        if not _is_journal(waiting):
            return True
        path = waiting.content["what"]
        _, feed = self._followed.get(path, ("", None))
        return not is_held(Path(path).with_name(LEASE)) if feed is None else feed.pending

    def _send(self, client: "MlflowClient", run: str, waiting: Entry) -> None:
        """Send an entry, and drop it; a journal that is still being written stays."""
        kind, what = waiting.content["kind"], waiting.content["what"]
        if not _is_journal(waiting):
            send(client, run, kind, what, waiting.payload)
            self._outage.ended()
            waiting.drop()
            return
        _, feed = self._followed.get(what, ("", None))
        if (feed or _read(Path(what), run)).deliver(partial(send, client, run, "rows")):
            self._outage.ended()
        if feed is None and not is_held(Path(what).with_name(LEASE)):  # nobody has resumed that training meanwhile
            waiting.drop()

    def _give_up(self, run: str, waiting: Entry, error: Exception, own: Path | None) -> None:
        """Remove an entry that can never be sent; tell the user, or raise the error if the entry is the caller's."""
        from mlflow.exceptions import MlflowException

        if not waiting.path.exists():  # this process stood still, and another one has sent it
            return
        path = waiting.content["what"]
        if _is_journal(waiting) and path in self._followed:
            if path not in self._complained:
                self._outage.tell(f"{path} cannot be sent to MLflow run {run} for now ({reason(error)})")
            self._complained.add(path)
            return
        refused = isinstance(error, MlflowException | OSError)
        if refused:
            waiting.drop()
        else:  # a fault of this program, which a later version may be without
            waiting.set_aside(f"it cannot be sent: {type(error).__name__}: {reason(error)}")
        if waiting.path == own:
            raise error
        if refused:
            self._outage.tell(f"cannot be delivered to MLflow run {run}, and is dropped: {reason(error)}")


def _has_an_order(waiting: Entry) -> bool:
    """Return whether later entries of a run must not be sent before this one; files do not depend on one another."""
    return waiting.content["kind"] not in ("artifact", "file")


def _answers(client: "MlflowClient") -> bool:
    """Return whether the store answers a simple question."""
    try:
        client.search_experiments(max_results=1)
    except Exception:
        return False
    return True


def _is_journal(waiting: Entry) -> bool:
    return waiting.content["kind"] == "journal"


def _read(journal: Path, run: str) -> MetricsFeed:
    """Return a feed with all rows of a journal that are still to be delivered."""
    feed = MetricsFeed(journal, run)
    feed.read()
    return feed
