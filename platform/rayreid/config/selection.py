"""Section of the subset, and the strategies with their options."""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from rayreid.config.section import ADDED, LARGEST, RUNTIME, Auto, Part, PositiveInt, Section

# The names are those of `rayreid.selection.registry`, which this floor cannot import.
Single = Literal["cfs", "target_similarity", "cluster", "hierarchical", "dedup", "quality", "random", "list"]
_FILTERS = ("dedup", "quality", "combine")
"""Strategies that remove images; they make a subset of the whole pool, too."""

# Those of `rayreid.selection.image_measures`, likewise.
Measure = Literal["height", "aspect", "sharpness", "brightness", "contrast", "saturation", "border", "jpeg_quality"]
_RULES = tuple(f"{kind}{measure}" for kind in ("min_", "max_", "") for measure in get_args(Measure))
_MOST_LEVELS = 8
Number = Annotated[float, Field(strict=True)]
Rule = Number | dict[str, Number]
"""A value, or shares by `drop_lowest` and `drop_highest`."""
_SHARE = {"type": "number", "minimum": 0}
_SHARES: dict[str, Any] = {"type": "object", "properties": {"drop_lowest": _SHARE, "drop_highest": _SHARE}}


def rules_inside(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a section with the rules that stand beside `rules` inside it."""
    beside = {key: value for key, value in section.items() if key in _RULES}
    inside = section.get("rules", {})
    if not beside or not isinstance(inside, Mapping):
        return section
    others = {key: value for key, value in section.items() if key not in _RULES}
    return {**others, "rules": {**inside, **beside}}


class Ranking(Section):
    """A way of ordering the images of a pool.

    The rules of the strategy `quality` may also stand beside its other keys: `{strategy: quality, min_height: 64}`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "patternProperties": {
                f"^(min|max)_({'|'.join(get_args(Measure))})$": {"type": "number"},
                f"^({'|'.join(get_args(Measure))})$": _SHARES,
            }
        }
    )

    also = _RULES

    list: Annotated[str | None, RUNTIME] = None
    """Ordered file list for the strategy `list`. Its content, not its path, is part of the subset's identity."""
    clusters: Annotated[PositiveInt | Auto, RUNTIME] = "auto"
    """Number of clusters for the strategies `cluster` and `dedup`; it enters no other strategy's identity. `auto`: the
    square root of the number of images, a quarter of it for `dedup`."""
    levels: Annotated[Auto | PositiveInt | tuple[PositiveInt, ...], RUNTIME] = "auto"
    """Levels of clusters for the strategy `hierarchical`: their number, or the number of clusters of each one, the
    finest first. `auto`: two levels, of N^(2/3) and N^(1/3) clusters of N images."""
    similarity: Annotated[float, Field(gt=0, le=1), RUNTIME] = 0.98
    """Smallest cosine of features by which the strategy `dedup` takes two images for near-duplicates."""
    keep: Annotated[PositiveInt, RUNTIME] = 4
    """Number of near-duplicates that the strategy `dedup` keeps of each group."""
    mode: Annotated[Literal["nearest", "round_robin"], RUNTIME, ADDED] = "nearest"
    """How the strategy `target_similarity` orders images: `nearest` by the cosine to the nearest target image,
    `round_robin` so that each target image in turn takes the most similar image that is left."""
    centre: Annotated[bool | Auto, RUNTIME, ADDED] = "auto"
    """Whether `target_similarity` and `dedup` subtract the pool's mean feature before cosines are computed. `auto`:
    `dedup` does, since features of one network lie in a cone in which all images are similar."""

    token: Annotated[Literal["class", "patch"], RUNTIME] = "class"
    """The feature of θs by which strategies compare images: the class token, or the mean of a ViT's patch tokens. It
    enters the ids of the features."""
    rules: Annotated[dict[str, Rule], RUNTIME] = Field(default_factory=dict)
    """What the strategy `quality` removes: `min_<measure>` and `max_<measure>` with a value, `<measure>` with
    `{drop_lowest: share}`, `{drop_highest: share}` or both; null takes a rule back that the file has."""
    by: Annotated[tuple[Measure, ...], RUNTIME] = ("height", "sharpness", "contrast")
    """Measures by the worst of which the strategy `quality` orders images."""

    @model_validator(mode="before")
    @classmethod
    def _rules_among_the_keys(cls, written: Any) -> Any:
        """Collect in `rules` those that stand beside it."""
        if not isinstance(written, Mapping):
            return written
        inside = written.get("rules", {})
        if not isinstance(inside, Mapping):
            return written
        twice = [key for key in written if key in _RULES and key in inside]
        if twice:
            raise ValueError(f"{twice[0]} stands in rules and beside it; write it in one place")
        collected = rules_inside(written)
        if "rules" not in collected:
            return collected
        rules = {key: value for key, value in collected["rules"].items() if value is not None}
        return {**collected, "rules": rules}

    @field_validator("levels", mode="before")
    @classmethod
    def _finest_first(cls, levels: Any) -> Any:
        several = isinstance(levels, list | tuple)
        sizes = levels if several else [levels]
        if levels == "auto" or (
            all(type(size) is int and size > 0 for size in sizes)
            and (sorted(sizes, reverse=True) == list(sizes) if several else levels <= _MOST_LEVELS)
            and 0 < len(sizes) <= _MOST_LEVELS
        ):
            return levels
        raise ValueError(
            f"give auto, a number of levels from 1 to {_MOST_LEVELS}, or the number of clusters of each level, the "
            "finest first and none smaller than the next"
        )

    def options(self, names: Iterable[str]) -> dict[str, Any]:
        """Return options that enter the identity of a strategy's priorities, as plain JSON values.

        One that was added later is left out at its default, so that older priorities stay valid.
        """
        fields, plain = type(self).model_fields, self.model_dump(mode="json")
        return {
            name: plain[name]
            for name in names
            if ADDED not in fields[name].metadata or getattr(self, name) != fields[name].default
        }


class CombinedPart(Ranking):
    """One of the strategies that the strategy `combine` combines."""

    strategy: Single
    """How this part orders the pool's images."""
    weight: Annotated[float, Field(ge=0, le=LARGEST)] = 1.0
    """Weight of this part's ranks, which lie in [0, 1]; with 0 it only removes what it does not rank."""


class Select(Ranking):
    """The choice of the part of the pool to pre-train on."""

    strategy: Single | Literal["combine"] = "cfs"
    """How the pool's images are ordered."""
    fraction: Part = 0.5
    """Share of the pool that is selected, best images first."""
    count: PositiveInt | None = None
    """Number of images; if given, it replaces `fraction`."""
    parts: Annotated[tuple[CombinedPart, ...], RUNTIME] = ()
    """The strategies that the strategy `combine` combines, in their order: each with its options and its `weight`."""

    @model_validator(mode="after")
    def _parts_of_a_combination(self) -> Self:
        if self.strategy != "combine":
            return self  # rows may try another strategy and inherit the parts
        if not self.parts:
            raise ValueError(
                "the strategy combine needs parts, such as [{strategy: cfs}, {strategy: cluster, weight: 0.5}]"
            )
        if not any(part.weight for part in self.parts):
            raise ValueError("no part of the strategy combine has a weight, so nothing orders the images; give one")
        return self

    @model_serializer(mode="wrap")
    def _in_the_first_order(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keep the order of keys by which runs of older files are found: the hash of a file depends on it."""
        tree = dump(self)
        return {key: tree[key] for key in ("strategy", "fraction", "count")} | tree

    @property
    def rankings(self) -> "tuple[Ranked, ...]":
        """Return the strategies behind the priorities: this one, or those that it combines."""
        return self.parts if self.strategy == "combine" else (self,)

    @property
    def share(self) -> float | None:
        """Return the fraction of the pool; None where a number of images is given, which takes precedence."""
        return self.fraction if self.count is None else None

    @property
    def whole(self) -> bool:
        """Return whether every image is kept."""
        return self.share == 1.0 and self.strategy not in _FILTERS

    def size(self, images: int) -> int:
        """Return how many of a pool's images are selected: the count, or the rounded fraction of them."""
        return round(self.fraction * images) if self.count is None else self.count

    def pool_size(self, selected: int) -> int:
        """Return the images of a pool that is large enough for a selection of at least `selected`, or of the count."""
        if self.count is not None:
            return self.count
        return math.ceil(selected / self.fraction) + 1  # one more, because `size` rounds

    @property
    def setting(self) -> str:
        """Return the key that sets the size, written as an override: `select.fraction=0.5`."""
        return f"select.fraction={self.fraction}" if self.count is None else f"select.count={self.count}"


Ranked = Select | CombinedPart
"""A strategy with its options."""
