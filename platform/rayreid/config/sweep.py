"""The section of a sweep: which keys it changes, and how their values are found."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from rayreid.config.section import Auto, PositiveInt, Section, Seed

_SAID_ONCE = ("uniform", "loguniform", "choice")


class Range(Section):
    """Values to draw from: exactly one of the three."""

    uniform: tuple[float, float] | None = None
    """Any number between the two."""
    loguniform: tuple[float, float] | None = None
    """Likewise, its logarithm uniform: for rates."""
    choice: Annotated[list[Any], Field(min_length=1)] | None = None
    """One of these; a list alone says the same."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in _SAID_ONCE) != 1:
            raise ValueError(f"say exactly one of {', '.join(_SAID_ONCE)}")
        for kind in ("uniform", "loguniform"):
            bounds = getattr(self, kind)
            if bounds is not None and not bounds[0] < bounds[1]:
                raise ValueError(f"{kind}: write the smaller bound first")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError("loguniform: both bounds are above 0")
        return self


class Sweep(Section):
    """Tune over dotted keys: every combination of their values, or some, drawn or searched for."""

    search: Literal["grid", "random", "optuna"] = "grid"
    """`random` draws `trials` combinations, `optuna` suggests them by what earlier ones reached (TPE)."""
    parameters: dict[str, Annotated[list[Any], Field(min_length=1)] | Range] = Field(min_length=1)
    trials: PositiveInt | None = None
    """How many, of `random` and `optuna`."""
    metric: Literal["mAP", "rank1", "rank5", "rank10", "mINP"] = "mAP"
    """What `optuna` makes as high as it can."""
    seed: Seed = 0
    """Of `random` and `optuna`; no part of the trials."""
    max_concurrent: PositiveInt | Auto = "auto"
    stop_below_median: PositiveInt | None = None
    """Epochs after which a trial ends whose pre-training's probe finds less than the median of the others'; null: none
    does. What is left is no fair comparison of all values. Not with `optuna`."""

    @field_validator("parameters", mode="before")
    @classmethod
    def _parsed(cls, parameters: Any) -> Any:
        if not isinstance(parameters, Mapping):
            return parameters
        return {key: _values(key, values) for key, values in parameters.items()}

    @model_validator(mode="after")
    def _searches(self) -> Self:
        if self.search == "optuna" and self.stop_below_median is not None:
            raise ValueError("stop_below_median: optuna needs what every trial reached; it is for grid and random")
        open_ended = [key for key, values in self.parameters.items() if isinstance(values, Range)]
        if self.search == "grid":
            if open_ended:
                raise ValueError(f"a grid needs lists of values; for the range of {open_ended[0]} say search: random")
            if self.trials is not None:
                raise ValueError("a grid runs every combination; trials are for search: random and optuna")
        elif self.trials is None:
            raise ValueError(f"search: {self.search} needs the number of trials")
        return self


def _values(key: str, values: Any) -> Any:
    """A list, or a range; what is wrong with one is said in a line of its own, not once for either form."""
    if not isinstance(values, Mapping):
        return values
    if not set(values) <= set(_SAID_ONCE):
        raise ValueError(f"{key}: values are a list, or one of {', '.join(_SAID_ONCE)}")
    try:
        found = Range.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{key}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    return found.choice or found
