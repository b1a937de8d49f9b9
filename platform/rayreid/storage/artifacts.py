"""Artifacts: outputs in `<root>/<stage>/<id>/`, identified by a hash of their recipe, and readable only when complete.

An artifact's id is a hash of the fields that change its result, of its inputs' ids and of the stage's version. It is
complete when its `artifact.json` exists, which is written last and atomically, and its files have the sizes recorded
there (see `rayreid.storage.contents`). A run that writes an artifact holds its
lease, so that two runs never write the same one. A run that loses the lease, because it stood still, is refused each
file that it would write afterwards, and its rows in the journal are not read (see `Fence`).
"""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Protocol

from rayreid import forms
from rayreid.disk_faults import explained
from rayreid.errors import UserError, escaped
from rayreid.files import check_guards, creating, guarded, make_folder, remove_temporaries, write_atomically
from rayreid.state_files import DamagedFileError, move_aside, read_json
from rayreid.storage.contents import (
    LEASE,
    LEFT_BY_WRITERS,
    RECORD,
    WRITERS,
    DamagedError,
    Record,
    read_record,
    settle,
    settle_names,
)
from rayreid.storage.damage import set_aside
from rayreid.storage.lease import Fence, Lease, LeaseLostError, held_by_another


class Job(Protocol):
    """The function that makes an artifact: a stage's function with its configuration and resources already bound.

    Artifacts are sent to Ray tasks together with their jobs, so a job must be picklable.
    """

    def __call__(self, context: Any, /) -> Mapping[str, Any]:
        """Make the artifact.

        Args:
            context: The context of the stage, a `rayreid.execution.production.StageContext`.

        Returns:
            Facts for `artifact.json`: counts, metrics, seconds.
        """


@dataclass(frozen=True)
class Artifact:
    """One output of one stage, whether it exists yet or not.

    Attributes:
        root: The output root.
        stage: The stage that makes it.
        version: That stage's version, which is raised when its code changes the result.
        fields: The part of the configuration that changes the result, as plain JSON values.
        inputs: The artifacts from which it is made, by role.
        auxiliary: Artifacts, by role, that are needed while it is made but do not change it (such as images on which a
            training is evaluated). They are not part of the identity, and are made only if this one is not complete.
        job: Function that makes the artifact; None if the artifact can only be read. It holds everything that the stage
            needs besides the fields (resources, paths) and is not part of the identity.
    """

    root: Path
    stage: str
    version: int
    fields: Mapping[str, Any]
    inputs: Mapping[str, "Artifact"] = field(default_factory=dict)
    auxiliary: Mapping[str, "Artifact"] = field(default_factory=dict, compare=False, repr=False, kw_only=True)
    job: Job | None = field(default=None, compare=False, repr=False)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Return the values of which the id is a hash."""
        inputs = {role: artifact.id for role, artifact in self.inputs.items()}
        return {"stage": self.stage, "version": self.version, "fields": dict(self.fields), "inputs": inputs}

    @cached_property
    def id(self) -> str:
        """Return the id, 12 hexadecimal digits."""
        text = json.dumps(self.identity, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    @property
    def path(self) -> Path:
        """Return the folder that holds it."""
        return self.root / self.stage / self.id

    @property
    def complete(self) -> bool:
        """Return whether it has been made completely; one that is damaged is not, which is logged once."""
        try:
            return self._record() is not None
        except DamagedError as error:
            _warn_once(str(error))
            return False

    @property
    def damage(self) -> str:
        """Return why it is not complete although it has a record; "" if it has none, or is complete.

        Raises:
            UserError: The storage does not let its files be read.
        """
        try:
            self._record()
        except DamagedError as error:
            return error.reason
        return ""

    @property
    def facts(self) -> dict[str, Any]:
        """Return the facts that its stage reported (counts, metrics, seconds).

        Raises:
            UserError: It is not complete, or is damaged.
        """
        record = self._record()
        if record is None:
            raise UserError(f"{self.path}: this {self.stage} artifact is not complete")
        return record.facts

    def _record(self) -> Record | None:
        """Return its record; None if it is not complete."""
        try:
            record = read_record(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if record.id not in ("", self.id):
            raise DamagedError(self.path, f"{RECORD} is that of {escaped(record.id)}")
        return record

    @contextmanager
    def writing(self, waiting: Callable[[], None] = lambda: None) -> Iterator[Path]:
        """Yield the folder, and hold its lease meanwhile; within the block, each file written there is guarded by it.

        What an earlier writer left unfinished is removed first, and what is damaged of a complete artifact is moved
        aside.

        Args:
            waiting: Function that is called once if another live run is writing it, before waiting for that run.
        """
        make_folder(self.path)
        try:
            with Lease(self.path / LEASE, waiting=waiting) as lease, self._fenced(lease):
                yield self.path
        finally:
            with contextlib.suppress(
                OSError
            ):  # only an empty folder is removed: a stage that wrote nothing leaves none
                self.path.rmdir()

    @contextmanager
    def _fenced(self, lease: Lease) -> Iterator[None]:
        # First of all: an earlier writer that is only suspended must not rename these when it wakes. They may also be
        # what fills the disk.
        remove_temporaries(self.path)
        counter = self.path / WRITERS
        number = _number(counter) + 1
        with guarded(self.path, Fence(lease.path, lease.token, number)):
            self._set_damage_aside()
            if not self.complete:
                with explained(self.path):
                    write_atomically(counter, json.dumps({"number": number}))
                    settle_names(self.path)  # what is written here later may be lost together with the folder
            recorded = False
            try:
                yield
                recorded = True
            finally:
                # It stays beside a complete artifact of which the writer had still something to record.
                if lease.held() and (recorded if self.complete else self._holds_nothing()):
                    counter.unlink(missing_ok=True)

    def _set_damage_aside(self) -> None:
        try:
            self._record()
        except DamagedError as error:
            check_guards(self.path)
            aside = set_aside(self.path)
            logging.getLogger("rayreid").warning(
                "%s: %s; what is damaged is moved to %s, which you can delete, and is made again",
                escaped(str(self.path)),
                escaped(error.reason),
                aside.name,
            )

    def _holds_nothing(self) -> bool:
        return {path.name for path in self.path.iterdir()} <= set(LEFT_BY_WRITERS)

    def finish(
        self,
        facts: Mapping[str, Any],
        checksums: Mapping[str, str] | None = None,
        made_by: Mapping[str, Any] | None = None,
    ) -> None:
        """Mark it as complete, with the given facts, once all its files have reached the disk.

        Args:
            facts: What its stage reports.
            checksums: Checksums of files that are known already, by path within the folder, so that these files are not
                read again.
            made_by: The command, host and versions that made it; no part of its identity.

        Raises:
            LeaseLostError: Another run has finished the artifact, or has taken over the lease, which happens if this
                run did not renew it for long.
        """
        if held_by_another(self.path / LEASE):
            raise LeaseLostError(
                f"{self.path}: another run took this artifact over while this one stood still; run again"
            )
        content = {"id": self.id, "recipe": self.identity, "facts": dict(facts), "made_by": dict(made_by or {})}
        content["files"] = settle(self.path, checksums or {})
        try:
            with creating(self.path / RECORD) as temporary:
                temporary.write_text(json.dumps(content, indent=1))
        except FileExistsError:
            raise LeaseLostError(f"{self.path}: another run has finished this artifact; run again") from None
        settle_names(self.path)

    def __str__(self) -> str:
        return f"{self.stage}/{self.id}"


@cache
def _warn_once(message: str) -> None:
    logging.getLogger("rayreid").warning(message)


def _number(counter: Path) -> int:
    """Return the number of the newest writer; 0 if there was none.

    A counter that is damaged, or missing beside a journal (a hidden file is easily left behind by a copy), would leave
    the order of writers unknown, so that the time takes its place: it is higher than any count, and later times are
    higher still.
    """
    if not counter.exists():
        return time.time_ns() if any(counter.parent.glob("*.jsonl")) else 0
    try:
        return int(read_json(counter, forms.record({"number": forms.count}))["number"])
    except DamagedFileError as error:
        if counter.is_dir():  # what is no folder is written over
            move_aside(counter, error.why, "the time is this writer's number")
        return time.time_ns()


def lineage(artifacts: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Return the given artifacts and all those on which they depend, by id; each comes after its inputs."""
    order: dict[str, Artifact] = {}
    for artifact in artifacts.values():
        order.update(lineage(artifact.inputs))
        order.setdefault(artifact.id, artifact)
    return order
