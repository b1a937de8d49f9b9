"""Production of artifacts: complete ones are kept, missing ones are made once, under a lease and an MLflow run."""

import contextlib
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape

from rayreid.config import Section
from rayreid.config.loading import flatten
from rayreid.console import Screen, clock
from rayreid.disk_faults import StorageError, explained
from rayreid.errors import StoppedEarly, UserError
from rayreid.execution.maker import maker_of
from rayreid.files import remove_temporaries
from rayreid.storage.artifacts import Artifact
from rayreid.storage.contents import LEASE, LEFT_BY_WRITERS, SCRATCH, WRITERS
from rayreid.storage.lease import LeaseLostError
from rayreid.tracking.revision import git_sha
from rayreid.tracking.run import Run
from rayreid.tracking.run_note import RunNote
from rayreid.tracking.turns import is_held

_TIME = "%Y-%m-%dT%H:%M:%SZ"
_NOTE = "run.json"
"""File that names the MLflow run, for the process that resumes after an interruption."""


@dataclass(frozen=True)
class StageContext:
    """The context in which a stage makes one artifact.

    Attributes:
        artifact: The artifact to make; its inputs and auxiliary artifacts are complete.
        folder: Folder for its files.
        run: The stage's MLflow run.
        screen: Screen that shows progress.
        checksums: Checksums of files that the stage knows, by path within the folder; they are not read again.
    """

    artifact: Artifact
    folder: Path
    run: Run
    screen: Screen
    checksums: dict[str, str] = field(default_factory=dict)

    def input(self, role: str) -> Path:
        """Return the folder of an input artifact or of an auxiliary one."""
        return {**self.artifact.auxiliary, **self.artifact.inputs}[role].path

    def resolved(self, fixed: Mapping[str, Any], passing: Mapping[str, Any] | None = None) -> None:
        """Show the resolved values of `auto` in one line, and log them as `resolved.*`.

        Args:
            fixed: Values that follow from the artifact's identity; they are logged as parameters.
            passing: Values that may change when an interrupted stage resumes; they are logged as tags, which can be
                set again.
        """
        passing = passing or {}
        shown = ", ".join(f"{name} {_short(value)}" for name, value in {**fixed, **passing}.items())
        self.screen.say(f"    {escape(shown)}")
        self.run.params({f"resolved.{name}": value for name, value in fixed.items()})
        self.run.tags({f"resolved.{name}": value for name, value in passing.items()})


def identity(**sections: Section | Any) -> dict[str, Any]:
    """Return the fields of several sections that change results, and plain values as they are, by name."""
    return {name: value.identity() if isinstance(value, Section) else value for name, value in sections.items()}


def produce(artifact: Artifact, parent: Run, screen: Screen, tags: Mapping[str, Any]) -> Artifact:
    """Make an artifact and everything that it depends on, except for artifacts that are complete; return the artifact.

    Args:
        artifact: The artifact to make.
        parent: The MLflow run in which new stage runs are nested.
        screen: Screen that shows progress.
        tags: MLflow tags for new stage runs.

    Raises:
        UserError: An error that the user can fix; no incomplete artifact counts as complete afterwards.
    """
    for needed in artifact.inputs.values():
        produce(needed, parent, screen, tags)
    if artifact.complete:
        _clear_scratch(artifact.path)
        if _left_to_record(artifact) and not is_held(artifact.path / LEASE):
            with contextlib.suppress(OSError, UserError), artifact.writing():
                _record_late(artifact, parent)
        return artifact
    for needed in artifact.auxiliary.values():
        produce(needed, parent, screen, tags)
    waiting = partial(screen.say, f"[dim]{artifact}: waiting for another run that is producing it[/]")
    with artifact.writing(waiting) as folder:
        if not artifact.complete:
            _make(artifact, folder, parent, screen, tags)
    return artifact


def _make(artifact: Artifact, folder: Path, parent: Run, screen: Screen, tags: Mapping[str, Any]) -> None:
    if artifact.job is None:
        raise ValueError(f"{artifact} has no job that could make it")
    began = time.monotonic()
    resumed = (folder / _NOTE).exists()
    try:
        # Explained twice: the run records why its stage failed, and may fail itself, as its store shares the disk.
        with explained(folder), _stage_run(artifact, folder, parent, tags) as run, explained(folder):
            run.follows_lease = True
            screen.say(f"[bold]▸ {artifact}[/]")  # not before: what is announced has a run, whatever interrupts it
            try:
                context = StageContext(artifact, folder, run, screen)
                facts = artifact.job(context)
            except StoppedEarly as ended:
                run.give_up(str(ended))
                raise
            seconds = time.monotonic() - began
            # The time that an interrupted process spent is unknown: `resumed` says that `seconds` does not include it.
            made: dict[str, Any] = {"finished": datetime.now(UTC).strftime(_TIME), "git_sha": git_sha()}
            made |= {"seconds": round(seconds, 1), "resumed": resumed, "run": run.id}
            artifact.finish({**facts, **made}, context.checksums, maker_of(run))
            _clear_scratch(folder)
            # Not before it is complete: a run that is killed in between, and resumed, would have each number twice.
            run.metrics(_numbers({**facts, **made}), at=_finished(made))
    except LeaseLostError:
        raise  # nothing in the folder is this run's any more
    except Exception as error:
        with contextlib.suppress(OSError):  # the storage may be what fails
            _clear_up(folder, begun=not isinstance(error, UserError) or isinstance(error, StorageError))
        raise
    shown = ", ".join(
        f"{name} {_short(value)}" for name, value in facts.items() if isinstance(value, int | float | str)
    )
    screen.say(f"  [green]✓[/] {clock(seconds)}{' since resumed' if resumed else ''}  {escape(shown)}")


def _numbers(facts: Mapping[str, Any]) -> dict[str, float]:
    """Return the facts of an artifact that are logged as metrics; those of a group have its name in front."""
    grouped = {
        f"{group}.{name}": value
        for group, values in facts.items()
        if isinstance(values, Mapping)
        for name, value in values.items()
        if isinstance(value, float)
    }
    alone = {name: value for name, value in facts.items() if isinstance(value, int | float) and name != "resumed"}
    return alone | grouped


def _finished(facts: Mapping[str, Any]) -> float:
    """Return when an artifact was finished (seconds since 1970)."""
    return datetime.strptime(facts["finished"], _TIME).replace(tzinfo=UTC).timestamp()


def _left_to_record(artifact: Artifact) -> bool:
    """Return whether the process that finished an artifact has still something to log, or was killed before it did.

    It removes the counter of writers last. On storage that is read-only, nothing is left to do.
    """
    return (artifact.path / WRITERS).exists() and os.access(artifact.path, os.W_OK)


def _record_late(artifact: Artifact, parent: Run) -> None:
    """Log what a process could not that was killed, or refused by the storage, when it had finished an artifact.

    Raises:
        UserError: The store does not know the run: it may be another one than the artifact was made with.
    """
    facts = artifact.facts
    if "finished" in facts:
        parent.tracker.finish_late(facts["run"], _numbers(facts), _finished(facts))


def _clear_scratch(folder: Path) -> None:
    """Remove what a complete artifact no longer needs, also if the run that finished it was killed before it did so."""
    for name in SCRATCH:
        shutil.rmtree(folder / name, ignore_errors=True)


def _clear_up(folder: Path, begun: bool) -> None:
    """Remove what a failed stage leaves that no later call could use."""
    remove_temporaries(folder)  # of workers that were stopped while they wrote
    noted = RunNote(folder / _NOTE).read() is not None  # a run that was never noted is found again by its mark
    if not begun and noted and {path.name for path in folder.iterdir()} <= {_NOTE, *LEFT_BY_WRITERS}:
        (folder / _NOTE).unlink()  # there is nothing that a later call could resume


def _stage_run(artifact: Artifact, folder: Path, parent: Run, tags: Mapping[str, Any]) -> Run:
    """Return the stage's run: the one that an interrupted process began, or a new one."""
    note = RunNote(folder / _NOTE)
    begun = note.read()
    if begun is not None:
        continued = parent.tracker.resume(begun)
        if continued is not None:
            return continued
    known = {"level": "stage", "stage": artifact.stage, "artifact": str(artifact)}
    run = parent.child(artifact.stage, {**tags, **known}, note)
    run.params(flatten(artifact.fields))
    note.write(run.id)
    return run


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
