"""Why an artifact has to be made: what differs from the nearest complete one of the same stage."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rayreid.config.loading import flatten
from rayreid.errors import UserError
from rayreid.masking import masked
from rayreid.storage.artifacts import Artifact
from rayreid.storage.contents import read_record
from rayreid.storage.inventory import Inventory, Stored

_NOT_SET = "not set"


@dataclass(frozen=True)
class Difference:
    """One value that differs.

    Attributes:
        name: Its place: a field of the artifact, or that of an input, which the input's role precedes.
        wanted: The value here.
        found: The value of the nearest artifact.
    """

    name: str
    wanted: Any
    found: Any

    def __str__(self) -> str:
        return f"{self.name} is {_shown(self.wanted)}, there {_shown(self.found)}"


@dataclass(frozen=True)
class Cause:
    """The nearest complete artifact of the same stage, and all that differs from it.

    Attributes:
        nearest: `stage/id`.
        differences: At least one.
    """

    nearest: str
    differences: tuple[Difference, ...]


def cause_of(artifact: Artifact, inventory: Inventory) -> Cause | None:
    """Return why an artifact has to be made; None if no artifact of its stage is complete on this root."""
    nearest: Cause | None = None
    for stored in inventory.complete(artifact.stage):
        if stored.id == artifact.id:
            continue
        found = tuple(_differences(artifact, stored, inventory))
        nearer = nearest is None or len(found) < len(nearest.differences)
        if found and nearer and _whole(stored):
            nearest = Cause(str(stored), found)
    return nearest


def _whole(stored: Stored) -> bool:
    """Return whether the files of an artifact with a record are there; without them, a run would make it again."""
    try:
        read_record(stored.folder)
    except (UserError, OSError):
        return False
    return True


def _differences(artifact: Artifact, stored: Stored, inventory: Inventory) -> Iterator[Difference]:
    seen: set[tuple[str, str]] = set()
    yield from _compared(artifact, stored, inventory, "", seen)


def _compared(
    artifact: Artifact, stored: Stored, inventory: Inventory, prefix: str, seen: set[tuple[str, str]]
) -> Iterator[Difference]:
    """Yield what differs in an artifact itself, and then in each of its inputs; a pair of inputs is compared once."""
    assert stored.record is not None
    recipe = stored.record.recipe
    if recipe.get("version") != artifact.version:
        yield Difference(f"{prefix}version of {artifact.stage}", artifact.version, recipe.get("version"))
    wanted, found = flatten(artifact.fields), flatten(recipe["fields"])
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        if wanted.get(name, _NOT_SET) != found.get(name, _NOT_SET):
            yield Difference(f"{prefix}{name}", wanted.get(name, _NOT_SET), found.get(name, _NOT_SET))
    others: Mapping[str, Any] = recipe["inputs"]
    for role in [*artifact.inputs, *(role for role in others if role not in artifact.inputs)]:
        mine, other = artifact.inputs.get(role), others.get(role)
        pair = (mine.id if mine else "", str(other))
        if pair[0] == other or pair in seen:
            continue
        seen.add(pair)
        behind = inventory.stored.get(str(other))
        if mine is None or behind is None or behind.record is None or behind.stage != mine.stage:
            yield Difference(f"{prefix}{role}", str(mine or _NOT_SET), other or _NOT_SET)
        else:
            yield from _compared(mine, behind, inventory, f"{prefix}{role} › ", seen)


def _shown(value: Any) -> str:
    text = "null" if value is None else masked(str(value))  # the part of a credential would not be recognised
    return text if len(text) <= 60 else f"{text[:57]}…"
