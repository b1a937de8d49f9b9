"""The section of a sweep: the keys that it changes, and how their values are chosen."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from rayreid.config.section import Auto, PositiveInt, Section, Seed

_SAID_ONCE = ("uniform", "loguniform", "choice")


class Range(Section):
    """Values to draw from; exactly one of the three fields is given."""

    uniform: tuple[float, float] | None = None
    """Bounds of a uniform distribution."""
    loguniform: tuple[float, float] | None = None
    """Bounds of a distribution whose logarithm is uniform, for learning rates and the like."""
    choice: Annotated[list[Any], Field(min_length=1)] | None = None
    """Values of which one is drawn; a plain list means the same."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in _SAID_ONCE) != 1:
            raise ValueError(f"give exactly one of {', '.join(_SAID_ONCE)}")
        for kind in ("uniform", "loguniform"):
            bounds = getattr(self, kind)
            if bounds is not None and not bounds[0] < bounds[1]:
                raise ValueError(f"{kind}: write the smaller bound first")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError("loguniform: both bounds are above 0")
        return self


class Sweep(Section):
    """Tuning over dotted keys: every combination of their values, or a number of drawn or suggested combinations."""

    search: Literal["grid", "random", "optuna"] = "grid"
    """`random` draws `trials` combinations; `optuna` suggests them from the results of earlier trials (TPE)."""
    parameters: dict[str, Annotated[list[Any], Field(min_length=1)] | Range] = Field(min_length=1)
    """Values by dotted key: a list, or with `random` and `optuna` also a range."""
    trials: PositiveInt | None = None
    """Number of trials of `random` and `optuna`."""
    metric: Literal["mAP", "rank1", "rank5", "rank10", "mINP"] = "mAP"
    """Metric that `optuna` maximises."""
    seed: Seed = 0
    """Seed of `random` and `optuna`; it does not enter the trials themselves."""
    max_concurrent: PositiveInt | Auto = "auto"
    """Largest number of trials at a time; `auto`: as many as can train at the same time."""
    stop_below_median: PositiveInt | None = None
    """Epochs after which a trial is stopped if its pre-training probe is below the median of the other trials; null:
    never. The remaining trials are no fair comparison of all values. Not available with `optuna`."""

    @field_validator("parameters", mode="before")
    @classmethod
    def _parsed(cls, parameters: Any) -> Any:
        if not isinstance(parameters, Mapping):
            return parameters
        if "seeds" in parameters:
            raise ValueError("seeds: a trial has one seed; give the values under the key seed")
        return {key: _values(key, values) for key, values in parameters.items()}

    @model_validator(mode="after")
    def _searches(self) -> Self:
        if self.search == "optuna" and self.stop_below_median is not None:
            raise ValueError(
                "stop_below_median: optuna needs the final score of every trial; use it with grid or random"
            )
        open_ended = [key for key, values in self.parameters.items() if isinstance(values, Range)]
        if self.search == "grid":
            if open_ended:
                raise ValueError(f"a grid needs lists of values; for the range of {open_ended[0]} use search: random")
            if self.trials is not None:
                raise ValueError("a grid runs every combination; trials are for search: random and optuna")
        elif self.trials is None:
            raise ValueError(f"search: {self.search} needs the number of trials")
        return self


def _values(key: str, values: Any) -> Any:
    """Return a list of values, or a range.

    A mistake in a range is reported on its own, not once for each of the two forms.
    """
    if not isinstance(values, Mapping):
        return values
    if not set(values) <= set(_SAID_ONCE):
        raise ValueError(f"{key}: values are a list, or one of {', '.join(_SAID_ONCE)}")
    try:
        found = Range.model_validate(values)
    except ValidationError as error:
        raise ValueError(f"{key}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    return found.choice or found
