"""Sections of the evaluation."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rayreid.config.inputs import Checkpoint, Source
from rayreid.config.section import ADDED, RUNTIME, PositiveInt, Section


class Rerank(Section):
    """k-reciprocal re-ranking (Zhong et al., arXiv 1701.08398), as published."""

    k1: PositiveInt = 20
    """Neighbours of an image, itself not counted."""
    k2: PositiveInt = 6
    """Of them averaged over, the image's own vector included."""
    weight: Annotated[float, Field(ge=0, le=1)] = 0.3
    """The paper's λ: the part of the original distance."""

    @model_validator(mode="after")
    def _nested(self) -> Self:
        if self.k2 > self.k1:
            raise ValueError(f"k2={self.k2} cannot be more than k1={self.k1}")
        return self


class Evaluate(Section):
    """Retrieval evaluation on the target's query and gallery."""

    batch_size: Annotated[PositiveInt, RUNTIME] = 256
    max_rank: PositiveInt = 50
    rerank: Annotated[Rerank | Literal[False], ADDED] = False
    """Metrics of the re-ranked lists, too; `true`: with the published numbers."""

    @field_validator("rerank", mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        if not isinstance(value, bool | Mapping | Rerank):
            raise ValueError("write true, false, or {k1: …, k2: …, weight: …}")
        return Rerank() if value is True else value


class MatrixTarget(Source):
    """A dataset to evaluate on."""

    name: Annotated[str, Field(pattern=r"^[\w.-]*$")] = ""
    """Its name in the table; the dataset's unless given."""

    @property
    def label(self) -> str:
        """What its column is called by, beside its edition."""
        return self.name or self.dataset

    @property
    def source(self) -> Source:
        """The dataset alone."""
        return Source(**{key: getattr(self, key) for key in Source.model_fields})


class Matrix(Section):
    """Every model on every target (`rayreid matrix`)."""

    rows: bool = True
    """Whether this file's rows (or, without rows, the file itself) are among the models, and their targets among the
    targets."""
    models: dict[str, Checkpoint] = Field(default_factory=dict)
    """Weights files by name, of the architecture in `backbone` unless they are rayreid's own."""
    targets: list[MatrixTarget] = Field(default_factory=list)
    """Datasets beside the rows' own targets."""
