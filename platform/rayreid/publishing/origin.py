"""Where a model comes from, read from the records of the artifacts from which it was made."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from rayreid.errors import UserError
from rayreid.inference.named_inputs import Made, find_artifact
from rayreid.masking import masked
from rayreid.storage.contents import ID, RECORD

TRAININGS = ("pretrain", "finetune", "adapt")
_POOL, _CHOICE = "pre-training", "choice of the images of the pre-training"
_USES = {("finetune", "target"): "fine-tuning with labels", ("adapt", "target"): "adaptation without labels"}
_MISSING_USES = {"weights": "the training before", "pool": _POOL, "subset": _CHOICE}
_SHOWN_APART = ("backbone", "seed", "start")
_PLACE = re.compile(r"^(?:[/~\\]|[A-Za-z]:[/\\]|\w[\w+.-]*://)")
"""The beginning of a text that is a place: an absolute path of any system, or an address."""


@dataclass(frozen=True)
class Dataset:
    """A dataset from which the model, or the choice of its training images, was made.

    Attributes:
        name: Name and version, as the stage *ingest* recorded it.
        uses: What it was used for, in words.
        images: Number of images.
        fingerprint: Fingerprint of the image store.
    """

    name: str
    uses: tuple[str, ...]
    images: int
    fingerprint: str


@dataclass(frozen=True)
class Missing:
    """An artifact of a model's history that is missing or damaged under the output root.

    Attributes:
        use: What it was used for, in words.
        id: Its id, as the record of the artifact that was made from it has it.
    """

    use: str
    id: str


@dataclass(frozen=True)
class Training:
    """A training in the model's history.

    Attributes:
        stage: pretrain, finetune or adapt.
        recipe: The section of the experiment that changed its result; of pre-training on a subset, also `select`.
        seed: Its seed.
        start: What it started from, in words.
        facts: What the stage recorded: images, steps, GPU-hours, machine and so on.
    """

    stage: str
    recipe: Mapping[str, Any]
    seed: int
    start: str
    facts: Mapping[str, Any]


class Lineage:
    """The artifacts under an output root from which a model was made.

    Args:
        made: The model's artifact.
    """

    def __init__(self, made: Made):
        self.made = made
        self.root = made.folder.parents[1]
        self._found: dict[str, Made | None] = {}

    def inputs(self, made: Made) -> dict[str, Made | None]:
        """Return the inputs of an artifact by role; None for those that are missing or damaged under the root."""
        return {role: self._at(identifier) for role, identifier in made.recipe["inputs"].items()}

    def missing(self, made: Made | None = None) -> list[Missing]:
        """Return the artifacts of a history (default: the model's) that are missing or damaged, each once.

        What they were made from is not known any more either.
        """
        return list(dict.fromkeys(self._missing(self.made if made is None else made, choosing=False)))

    def signature(self, made: Made | None) -> Any:
        """Return what tells how an artifact was made, without seeds: it is equal for the seeds of one row."""
        if made is None:
            return None
        fields = {key: value for key, value in made.recipe["fields"].items() if key != "seed"}
        inputs = {role: self.signature(one) or made.recipe["inputs"][role] for role, one in self.inputs(made).items()}
        return [made.recipe["stage"], made.recipe["version"], fields, inputs]

    def datasets(self) -> list[Dataset]:
        """Return the datasets of the model's history, each once."""
        uses: dict[Path, list[str]] = {}
        stores: dict[Path, Made] = {}
        for use, store in self._stores(self.made, choosing=False):
            stores[store.folder] = store
            uses.setdefault(store.folder, []).append(use)
        return [
            Dataset(
                without_places(str(made.facts.get("dataset", "unknown"))),
                tuple(dict.fromkeys(uses[folder])),
                int(made.facts.get("images", 0)),
                str(made.facts.get("fingerprint", "")),
            )
            for folder, made in stores.items()
        ]

    def pools(self) -> list[Path] | None:
        """Return the image stores on which the model was pre-trained; None if one of them is not known any more."""
        inputs = [self.inputs(made) for made in self._trained()]
        if any(one[role] is None for one in inputs for role in ("pool", "weights") if role in one):
            return None
        return list(dict.fromkeys(pool.folder for one in inputs if (pool := one.get("pool")) is not None))

    def trainings(self) -> list[Training]:
        """Return the trainings of the model's weights, the first one first; those of proxies are left out."""
        return [self._training(made) for made in self._trained()][::-1]

    def _trained(self) -> list[Made]:
        """Return the artifacts of the model's weights, the last one first."""
        found: list[Made] = []
        made: Made | None = self.made
        while made is not None and made.recipe["stage"] in TRAININGS:
            found.append(made)
            made = self.inputs(made).get("weights")
        return found

    def _training(self, made: Made) -> Training:
        fields, inputs = made.recipe["fields"], self.inputs(made)
        recipe = {key: value for key, value in fields.items() if key not in _SHOWN_APART}
        if "subset" in inputs:
            subset = inputs["subset"]
            recipe["select"] = (
                subset.recipe["fields"].get("select", {})
                if subset is not None
                else f"not known: artifact {made.recipe['inputs']['subset']} is missing or damaged"
            )
        start = fields.get("start")
        if "weights" in inputs and inputs["weights"] is None:
            begun = f"the weights of artifact {made.recipe['inputs']['weights']}, which is missing or damaged"
        elif "weights" in inputs:
            begun = "the weights of the training before it"
        else:
            begun = "fresh weights" if start is None else f"given weights ({start})"
        return Training(
            made.recipe["stage"],
            without_places(recipe),
            int(fields.get("seed", 0)),
            str(without_places(begun)),
            {key: value for key, value in made.facts.items() if isinstance(value, int | float | str)},
        )

    def _stores(self, made: Made, choosing: bool) -> Iterator[tuple[str, Made]]:
        """Yield the image stores from which an artifact was made, each with its use.

        Args:
            made: The artifact.
            choosing: Whether it served to choose the images of the pre-training, as proxies and scores do.
        """
        stage = made.recipe["stage"]
        for role, one in self.inputs(made).items():
            if one is None:
                continue  # `_missing` yields it
            if one.recipe["stage"] == "ingest":
                use = _USES.get((stage, role), _CHOICE)
                yield (_POOL if role == "pool" else _CHOICE if choosing else use), one
            else:
                yield from self._stores(one, choosing or role == "subset")

    def _missing(self, made: Made, choosing: bool) -> Iterator[Missing]:
        """Yield the artifacts of a history that are missing or damaged; `choosing` as for `_stores`."""
        stage = made.recipe["stage"]
        for role, one in self.inputs(made).items():
            if one is not None:
                yield from self._missing(one, choosing or role == "subset")
                continue
            use = _USES.get((stage, role)) or _MISSING_USES.get(role, role)
            yield Missing(_CHOICE if choosing else use, str(without_places(made.recipe["inputs"][role])))

    def _at(self, identifier: str) -> Made | None:
        if identifier not in self._found:
            self._found[identifier] = None
            places = self.root.glob(f"*/{identifier}/{RECORD}") if ID.fullmatch(identifier) else iter(())
            with contextlib.suppress(UserError, StopIteration):  # what is damaged is told by who uses it
                self._found[identifier] = find_artifact(str(next(places).parent))
        return self._found[identifier]


def without_places(value: Any) -> Any:
    """Return a plain JSON value in which absolute paths and addresses are cut down to their last name.

    Credentials are masked, too.
    """
    if isinstance(value, str):
        return masked(f"…/{PureWindowsPath(value.rstrip('/')).name}" if _PLACE.match(value) else value)
    if isinstance(value, Mapping):
        return {str(key): without_places(one) for key, one in value.items()}
    return [without_places(one) for one in value] if isinstance(value, list | tuple) else value
