"""The artifacts that an experiment needs: those that it plans, those in which files lie that its configuration names.

A run records them in the experiment's folder. Which artifacts a configuration stands for depends on files and on
variables of the environment (a file list, weights, `RAYREID_DATA`), which may have changed when somebody asks later.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from rayreid import forms
from rayreid.config import Experiment
from rayreid.errors import UserError
from rayreid.files import write_atomically
from rayreid.paths import data_path, expanded
from rayreid.state_files import if_whole, read_json
from rayreid.storage.artifacts import Artifact, lineage
from rayreid.storage.contents import ID

_FILE = "artifacts.json"
_FORM = forms.record({"artifacts": forms.list_of(forms.matching(r"[^/]+/[0-9a-f]{12}"))})
_LOCAL = "file://"


def needed(experiment: Experiment, graphs: Iterable[Mapping[str, Artifact]], root: Path) -> set[str]:
    """Return the artifacts that an experiment needs, as `stage/id`.

    Args:
        experiment: The experiment, of which all values are searched for paths.
        graphs: Its planned artifacts.
        root: The output root.
    """
    planned: dict[str, Artifact] = {}
    for graph in graphs:
        planned.update(lineage(graph))
    for artifact in list(planned.values()):
        planned.update(lineage(artifact.auxiliary))
    return {str(artifact) for artifact in planned.values()} | named_in(experiment.model_dump(mode="json"), root)


def named_in(values: Any, root: Path) -> set[str]:
    """Return the artifacts of an output root in which paths lie that are among nested values, as `stage/id`.

    A path may be that of a file, of the artifact's folder, or of a folder that holds artifacts. A relative one is
    looked up in `RAYREID_DATA` and in the current folder. A link counts by where it lies and by what it leads to.
    """
    roots = {Path(os.path.normpath(root.absolute())), Path(os.path.realpath(root))}
    places = {place for value in set(_texts(values)) for place in _places(value)}
    inside = ((one, place.relative_to(one)) for place in places for one in roots if place.is_relative_to(one))
    return {name for one, path in inside for name in _artifacts_at(one, path.parts)}


def record_needed(folder: Path, names: Iterable[str]) -> None:
    """Add artifacts to those that an experiment's folder records as needed."""
    path, names = folder / _FILE, set(names)
    known = if_whole(path, partial(recorded_in, folder), "the artifacts that this run needs are recorded anew") or set()
    if not path.exists() or not known >= names:
        write_atomically(path, json.dumps({"artifacts": sorted(known | names)}, indent=1))


def recorded_in(folder: Path) -> set[str]:
    """Return the artifacts that the runs of an experiment's folder needed; none if an older version ran it.

    Raises:
        DamagedFileError: The record cannot be understood.
    """
    path = folder / _FILE
    return set(read_json(path, _FORM)["artifacts"]) if os.path.lexists(path) else set()


def _texts(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, Mapping):
        for inner in values.values():
            yield from _texts(inner)
    elif isinstance(values, list | tuple):
        for inner in values:
            yield from _texts(inner)


def _places(value: str) -> set[Path]:
    """Return the absolute paths that a value may stand for; none if it can be no path of this machine."""
    spellings = {value}
    if value.startswith(_LOCAL):
        local = f"/{value.removeprefix(_LOCAL).partition('/')[2]}"
        spellings = {local, unquote(local)}
    elif not value or "://" in value:
        return set()
    found: set[Path] = set()
    for spelling, resolve in itertools.product(spellings, (data_path, expanded)):
        with contextlib.suppress(UserError, OSError, ValueError):
            path = resolve(spelling).absolute()
            beside = Path(os.path.realpath(path.parent)) / path.name
            found |= {Path(os.path.normpath(one)) for one in (path, beside, os.path.realpath(path))}
    return found


def _artifacts_at(root: Path, parts: tuple[str, ...]) -> set[str]:
    """Return the artifact that a path within an output root belongs to, or those that lie in the folder there."""
    if len(parts) >= 2:
        return {f"{parts[0]}/{parts[1]}"} if ID.fullmatch(parts[1]) else set()
    found = root.glob(f"{parts[0]}/*" if parts else "*/*")
    return {f"{path.parent.name}/{path.name}" for path in found if ID.fullmatch(path.name)}
