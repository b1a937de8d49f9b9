"""The result of loading weights, tensor by tensor, in one line or in full."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayreid.errors import escaped
from rayreid.models.formats import TITLES
from rayreid.models.layouts import SIE
from rayreid.models.positions import Grid

NAMED_KEYS = 5
Shape = tuple[int, ...]


@dataclass(frozen=True)
class LoadReport:
    """The result of `load_weights`, or the result that `check_weights` predicts.

    Attributes:
        source: The file, or `timm:NAME`.
        format: Origin of the file (`rayreid.models.formats.TITLES`).
        loaded: Names of all loaded tensors.
        resized: Names of resampled tensors → the grids of the file and of the backbone, (height, width) in patches.
        assumed: The grid that the position embedding is assumed to have, in words; "" if it is known.
        counted_anew: Step counters of batch norm that the file lacks, as files of PyTorch before 0.4.1 do; they are set
            to 0.
        ignored: Names in the file that are left out on purpose → the reason.
        missing: Names that the file lacks. Like the next two, it is empty in strict mode.
        unexpected: Names in the file that the backbone does not have.
        other_shape: Name → the shapes in the file and in the backbone.
        differs: Description of parts of the file's network that the backbone lacks.
        facts: Known facts beyond the tensors (see `Checkpoint`), including `mean` and `std`.
        header: Our header; empty for files of other origin.
    """

    source: str
    format: str
    loaded: list[str]
    resized: dict[str, tuple[Grid, Grid]] = field(default_factory=dict)
    assumed: str = ""
    counted_anew: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    other_shape: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    differs: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Return whether every tensor of the backbone was loaded and every tensor of the file is accounted for."""
        return not (self.missing or self.unexpected or self.other_shape or self.differs)

    def __str__(self) -> str:
        parts = [f"{'all ' if self.whole else ''}{len(self.loaded)} tensors loaded"]
        parts += [f"{name} resized {_grids(*grids)}" for name, grids in self.resized.items()]
        parts += [self.assumed] if self.assumed else []
        parts += [f"network taken: {self.facts['taken']}"] if "taken" in self.facts else []
        parts += [f"{len(names)} {what}" for what, names in [("ignored", self.ignored), *self._rest()] if names]
        parts += sorted({reason for reason in self.ignored.values() if reason == SIE})
        return f"{self.source} ({TITLES[self.format]}): {', '.join(parts)}"

    def faults(self) -> str:
        """Return a description of the tensors that did not fit, with some names of each kind."""
        listed = {**dict(self._rest()), "of another shape": self._shapes()}
        parts = [f"{len(names)} {what}: {_some(list(names))}" for what, names in listed.items() if names]
        return "; ".join([*([self.differs] if self.differs else []), *parts])

    def without_strict(self, wanted: int) -> str:
        """Return what `strict: false` would do with the file, for a backbone of `wanted` tensors."""
        if not self.loaded:
            return "strict: false would not help: no tensor fits"
        return (
            f"strict: false (of a command: --no-strict) would take {len(self.loaded)} of the {wanted} tensors and "
            f"leave {wanted - len(self.loaded)} as they were drawn"
        )

    def lines(self) -> list[str]:
        """Return the whole report as lines of text."""
        known = [f"{name}: {value}" for name, value in self.facts.items()]
        sizes = [f"{name} {_grids(*grids)}" for name, grids in self.resized.items()]
        reasons = sorted(set(self.ignored.values()))
        left = [f"{reason}: {', '.join(n for n in self.ignored if self.ignored[n] == reason)}" for reason in reasons]
        blocks: dict[str, Iterable[str]] = {
            "known": known,
            "resized": sizes,
            "ignored": left,
            "set to 0": self.counted_anew,
            "differs": [self.differs] if self.differs else [],
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self._shapes(),
            "loaded": self.loaded,
        }
        told = [f"  {what}: {line}" for what, entries in blocks.items() for line in entries]
        return [str(self), *told]

    def figures(self) -> dict[str, Any]:
        """Return the facts to store with an artifact, JSON-able; it only names tensors that were not loaded."""
        return {
            "source": self.source,
            "format": self.format,
            "loaded": len(self.loaded),
            "resized": {name: _grids(*grids) for name, grids in self.resized.items()},
            "ignored": len(self.ignored),
            "missing": self.missing,
            "unexpected": self.unexpected,
            "other_shape": self._shapes(),
            "facts": self.facts,
        }

    def _rest(self) -> list[tuple[str, Sequence[str]]]:
        return [
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", list(self.other_shape)),
        ]

    def _shapes(self) -> list[str]:
        return [f"{name} (file {theirs}, backbone {ours})" for name, (theirs, ours) in self.other_shape.items()]


def _grids(old: Grid, new: Grid) -> str:
    return f"{old[0]}x{old[1]} → {new[0]}x{new[1]}"


def _some(names: Sequence[str]) -> str:
    return escaped(", ".join(names[:NAMED_KEYS])) + (", …" if len(names) > NAMED_KEYS else "")
