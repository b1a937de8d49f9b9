"""Where outputs live: `<root>/<stage>/<id>/`, named by what they are made from, never half-read.

An artifact's id is a hash of the fields that change its result, of its inputs' ids and of the stage's version. It is
complete when its `artifact.json` exists, which is written last and atomically. Who writes an artifact holds its lease,
so that two runs never write the same one.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from rayreid.errors import UserError
from rayreid.files import make_folder, write_atomically
from rayreid.storage.lease import Lease, held_by_another

_FACTS = "artifact.json"
_LEASE = "lease.json"


class Job(Protocol):
    """What makes an artifact: a stage's function with its configuration and resources already filled in.

    Artifacts travel to Ray tasks with their jobs, so a job must be picklable.
    """

    def __call__(self, context: Any, /) -> Mapping[str, Any]:
        """Make the artifact.

        Args:
            context: The artifact, its folder and what the stage may use (`rayreid.execution.production.StageContext`).

        Returns:
            Facts for `artifact.json`: counts, metrics, seconds.
        """


@dataclass(frozen=True)
class Artifact:
    """One output of one stage, whether it exists yet or not.

    Attributes:
        root: the outputs' root folder.
        stage: the stage that makes it.
        version: that stage's version, raised when its code changes what it computes.
        fields: what of the configuration changes the result, as plain JSON values.
        inputs: the artifacts it is made from, by role.
        auxiliary: artifacts, by role, that are needed while it is made but do not change it (images to watch a training
            with). They are no part of the identity, and are made only where this one is not complete.
        job: Makes the artifact; None where it can only be read. It carries what the stage needs besides the fields
            (resources, paths) and is not part of the identity.
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
        """All that the id is a hash of."""
        inputs = {role: artifact.id for role, artifact in self.inputs.items()}
        return {"stage": self.stage, "version": self.version, "fields": dict(self.fields), "inputs": inputs}

    @cached_property
    def id(self) -> str:
        """12 hexadecimal digits."""
        text = json.dumps(self.identity, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    @property
    def path(self) -> Path:
        """The folder that holds it."""
        return self.root / self.stage / self.id

    @property
    def complete(self) -> bool:
        """Whether it has been made, whole."""
        return (self.path / _FACTS).exists()

    @property
    def facts(self) -> dict[str, Any]:
        """What its stage had to say of it (counts, figures, seconds).

        Raises:
            UserError: it is not complete.
        """
        try:
            return json.loads((self.path / _FACTS).read_text())["facts"]
        except FileNotFoundError:
            raise UserError(f"{self.path}: this {self.stage} artifact is not complete") from None

    @contextmanager
    def writing(self, waiting: Callable[[], None] = lambda: None) -> Iterator[Path]:
        """Hold the lease on the folder; yields the folder.

        Args:
            waiting: called once where another live run writes it, which is waited for.
        """
        make_folder(self.path)
        try:
            with Lease(self.path / _LEASE, waiting=waiting):
                yield self.path
        finally:
            with contextlib.suppress(OSError):  # one that was refused before it wrote anything leaves no folder
                self.path.rmdir()

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Declare it complete.

        Raises:
            UserError: another run has taken the lease over, as it does when this one was silent for long.
        """
        if held_by_another(self.path / _LEASE):
            raise UserError(f"{self.path}: another run took this artifact over while this one stood still; run again")
        content = {"id": self.id, "recipe": self.identity, "facts": dict(facts)}
        write_atomically(self.path / _FACTS, json.dumps(content, indent=1))

    def __str__(self) -> str:
        return f"{self.stage}/{self.id}"


def lineage(artifacts: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """All artifacts that the given ones stand on, themselves included, by id, inputs before what they go into."""
    order: dict[str, Artifact] = {}
    for artifact in artifacts.values():
        order.update(lineage(artifact.inputs))
        order.setdefault(artifact.id, artifact)
    return order
