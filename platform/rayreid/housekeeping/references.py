"""What refers to the artifacts of an output root: other artifacts, experiments, their reports, registered models."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rayreid import forms
from rayreid.config import Experiment, Matrix
from rayreid.config.loading import load_experiment, rows
from rayreid.data.store.manifest import MANIFEST, ORIGIN
from rayreid.errors import UserError, escaped, one_line
from rayreid.paths import output_root
from rayreid.pipeline.graph import plan
from rayreid.pipeline.matrix import cells_of
from rayreid.pipeline.needed_artifacts import named_in, needed, recorded_in
from rayreid.pipeline.selection_report import COMPARED, variants
from rayreid.state_files import read_json
from rayreid.storage.inventory import Inventory, Stored
from rayreid.sweeps.trials import corners, trials
from rayreid.tracking.database import file_of
from rayreid.tracking.history import History
from rayreid.tracking.run_note import NOTE_FORM
from rayreid.tracking.store import tracking_uri

_CONFIG = "config.yaml"
_NO_STAGES = ("experiments", "reports", "undelivered")
"""Folders of an output root that hold no artifacts."""
_ORIGIN_FORM = forms.record({}, {ORIGIN: forms.text})
_ARTIFACT = "artifact."
"""Start of the tags with which a run names its artifacts."""


@dataclass(frozen=True)
class References:
    """What refers to which artifact.

    Attributes:
        inputs: Artifacts that were made from an artifact, by its id.
        others: Experiments, reports and registered models that use it, by its id.
        needs: Ids of the artifacts that an artifact needs, by its id: those that it was made from, and stores whose
            images it reads where they are.
        unresolved: Why it is not known what something refers to, one line each with the remedy; nothing may be deleted
            then.
    """

    inputs: Mapping[str, tuple[str, ...]]
    others: Mapping[str, tuple[str, ...]]
    needs: Mapping[str, frozenset[str]]
    unresolved: tuple[str, ...]

    def of(self, identifier: str) -> tuple[str, ...]:
        """Return all that refers to an artifact."""
        return (*self.others.get(identifier, ()), *self.inputs.get(identifier, ()))


def look() -> tuple[Inventory, References]:
    """Return the artifacts of the output root, and what refers to them."""
    inventory = Inventory(output_root())
    return inventory, references(inventory)


def references(inventory: Inventory, aside: Iterable[Stored] = ()) -> References:
    """Return what refers to the artifacts of an inventory.

    Args:
        inventory: The artifacts.
        aside: Artifacts that were moved aside, as they were before: what they need is still needed if they are used.
    """
    unresolved: list[str] = []
    inputs: dict[str, list[str]] = {}
    needs: dict[str, set[str]] = {}
    for stored in (*inventory.folders, *aside):
        for role, identifier in _needs(stored, inventory.root, unresolved):
            inputs.setdefault(identifier, []).append(f"{stored} ({role})")
            needs.setdefault(stored.id, set()).add(identifier)
    others: dict[str, list[str]] = {}
    for name, wanted in _users(inventory.root, unresolved):
        for identifier in wanted:
            others.setdefault(identifier, []).append(name)
    for stored in inventory.folders:
        if stored.record is None and stored.id not in others:
            state, remedy = "unfinished", "rayreid doctor --repair --discard unfinished deletes it"
            if stored.fault:
                state, remedy = f"damaged ({stored.fault})", f"restore it, or delete {escaped(str(stored.folder))}"
            unresolved.append(
                f"{stored} is {state} and belongs to no experiment of this root, so what it needs is not known; "
                f"{remedy}"
            )
    for folder, reason in inventory.unreadable.items():
        if folder.name.isalpha() and folder.name not in _NO_STAGES:  # nor is `lost+found` one
            unresolved.append(f"{escaped(str(folder))}: it cannot be looked at ({reason}); see its permissions")
    frozen = {identifier: frozenset(found) for identifier, found in needs.items()}
    return References(_tuples(inputs), _tuples(others), frozen, tuple(unresolved))


def _tuples(found: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    return {identifier: tuple(dict.fromkeys(names)) for identifier, names in found.items()}


def _needs(stored: Stored, root: Path, unresolved: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the ids of the artifacts that a complete artifact needs, each after its role."""
    if stored.record is None:
        return
    yield from stored.record.recipe["inputs"].items()
    named = named_in(stored.record.recipe["fields"], root)
    manifest = stored.folder / MANIFEST
    try:
        if os.path.lexists(manifest):
            named |= named_in(read_json(manifest, _ORIGIN_FORM).get(ORIGIN), root)
    except (OSError, UserError) as error:
        unresolved.append(f"{stored}: where its images are is not known ({one_line(error)}); restore its {MANIFEST}")
    yield from (("named by path", _id(name)) for name in sorted(named - {str(stored)}))


def _users(root: Path, unresolved: list[str]) -> Iterator[tuple[str, set[str]]]:
    """Yield the names of experiments, reports and registered models, with the ids of the artifacts that they use."""
    by_run: dict[str, set[str]] = {}
    for folder in _folders(root / "experiments", unresolved):
        try:
            wanted = _wanted(folder, root)
        except (OSError, UserError) as error:
            unresolved.append(
                f"{escaped(str(folder))}: what this experiment needs is not known ({one_line(error)}); mend that, or "
                "delete the folder"
            )
            continue
        yield f"experiments/{escaped(folder.name)}", wanted
        run = _run_of(folder)
        if run:
            by_run[run] = wanted
    for page in sorted((root / "reports").glob("*/")):
        for run, wanted in by_run.items():
            if page.name.endswith(f"-{run[:8]}"):
                yield f"reports/{escaped(page.name)}", wanted
    yield from _registered(root, unresolved)


def _folders(experiments: Path, unresolved: list[str]) -> list[Path]:
    """Return the folders of all experiments, also those to which links lead; what cannot be looked at is unresolved."""
    try:
        with os.scandir(experiments) as entries:  # a glob of a folder that may not be listed is empty
            return sorted(Path(entry.path) for entry in entries if not entry.is_file(follow_symlinks=False))
    except FileNotFoundError:
        if os.path.lexists(experiments):
            unresolved.append(f"{experiments}: leads to a folder that is not there; mount it")
    except OSError as error:
        unresolved.append(f"{experiments}: cannot be listed ({one_line(error)}); see its permissions")
    return []


def _wanted(folder: Path, root: Path) -> set[str]:
    """Return the ids of all artifacts that an experiment's folder stands for: those recorded, and those planned today.

    Raises:
        UserError: The configuration cannot be read any more, or names a file that is missing.
        OSError: The folder cannot be looked at.
    """
    if not (folder / _CONFIG).is_file():
        raise UserError(f"it has no {_CONFIG}")
    experiment = load_experiment(folder / _CONFIG)
    graphs = [plan(one, root) for one in _experiments(experiment, compared=(folder / "selections.html").exists())]
    if experiment.matrix != Matrix() or (folder / "matrix.json").exists():
        graphs.append({str(pair): cell for pair, cell in cells_of(experiment, root).items()})
    return {_id(name) for name in needed(experiment, graphs, root) | recorded_in(folder)}


def _id(name: str) -> str:
    return name.partition("/")[2]


def _experiments(experiment: Experiment, compared: bool) -> Iterator[Experiment]:
    if experiment.sweep is not None:
        yield from trials(experiment).values() or corners(experiment)
        return
    yield from rows(experiment).values()
    if experiment.compares:
        yield experiment.alone
    if compared:
        yield from (one for one in variants(experiment, COMPARED).values() if one.selects)


def _run_of(folder: Path) -> str | None:
    try:
        run: str | None = read_json(folder / "run.json", NOTE_FORM)["run"]
    except (OSError, UserError):
        return None
    return run


def _registered(root: Path, unresolved: list[str]) -> Iterator[tuple[str, set[str]]]:
    try:
        uri = tracking_uri(root)
        database = file_of(uri)
        if database is not None and not database.is_file():
            return
        models = History(uri).registered()
    except UserError as error:
        unresolved.append(f"which models are registered is not known ({error})")
        return
    for model, tags in models.items():
        named = {value.partition("/")[2] for key, value in tags.items() if key.startswith(_ARTIFACT)}
        yield model, named
