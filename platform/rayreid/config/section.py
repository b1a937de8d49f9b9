"""The building blocks of the sections of an experiment file."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

RUNTIME = "rayreid:runtime"
"""Marks a field that changes how a stage runs but not what it computes; it does not enter artifact ids."""

ADDED = "rayreid:added"
"""Marks a field that was added after artifacts had been made; it does not enter ids at its default, so old ids stay
valid."""

PATCH = 16
"""Side of a ViT's patch in pixels; image sizes are multiples of it."""

DINOV2_PATCH = 14
"""The same of the ViTs of DINOv2."""

Auto = Literal["auto"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]

# Every number has an upper bound, far above any sensible value: a slip of the hand such as 1e30 is then refused with
# its key before anything runs, and not by the allocation or the loop that meets it hours later.
MOST = 10**9
MOST_IN_A_BATCH = 2**20
MOST_WIDE = 2**24
MOST_DEEP = 1000
MOST_PIXELS = 8192
LARGEST = 1e6

Count = Annotated[int, Field(ge=0, le=MOST)]
PositiveInt = Annotated[int, Field(ge=1, le=MOST)]
BatchSize = Annotated[int, Field(ge=1, le=MOST_IN_A_BATCH)]
SeveralInABatch = Annotated[int, Field(ge=2, le=MOST_IN_A_BATCH)]
Width = Annotated[int, Field(ge=1, le=MOST_WIDE)]
Depth = Annotated[int, Field(ge=1, le=MOST_DEEP)]
Pixels = Annotated[int, Field(ge=0, le=MOST_PIXELS)]
Side = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
Size = Annotated[tuple[Side, Side], Field(description="height, width in pixels")]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
NotNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
Part = Annotated[float, Field(gt=0, le=1)]


def _ordered(share: tuple[float, float]) -> tuple[float, float]:
    if share[0] > share[1]:
        raise ValueError("write the smaller share first")
    return share


Channels = tuple[NotNegative, NotNegative, NotNegative]
"""One number per colour channel, for images in [0, 1]."""

Shares = Annotated[tuple[Part, Part], AfterValidator(_ordered)]
"""Range of shares of an image's area, the smaller share first."""


class Section(BaseModel):
    """A section of an experiment file; it is immutable and refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    also: ClassVar[tuple[str, ...]] = ()
    """Keys that a section accepts in addition to its fields."""

    def identity(self) -> dict[str, Any]:
        """Return the fields that change a stage's result, as plain JSON values."""
        return {
            name: value.identity() if isinstance(value := getattr(self, name), Section) else plain[name]
            for plain in [self.model_dump(mode="json")]
            for name, field in type(self).model_fields.items()
            if RUNTIME not in field.metadata
            if ADDED not in field.metadata or getattr(self, name) != field.default
        }


def within_epochs(warmup: int | Auto, info: ValidationInfo) -> int | Auto:
    """Return the epochs of a warm-up that is not longer than the training; validates a field after `epochs`."""
    if info.data.get("steps") is not None:  # the size of an epoch is not known yet; `Pretrain.recipe` checks it
        return warmup
    epochs = info.data.get("epochs")  # absent if it was refused itself
    if warmup != "auto" and epochs is not None and warmup > epochs:
        raise ValueError(f"a warm-up cannot be longer than the {epochs} epochs of the training")
    return warmup
