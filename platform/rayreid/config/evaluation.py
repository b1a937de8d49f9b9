"""Sections of the evaluation."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rayreid.config.inputs import Checkpoint, Source
from rayreid.config.section import ADDED, RUNTIME, BatchSize, PositiveInt, Section


class Rerank(Section):
    """k-reciprocal re-ranking (Zhong et al., arXiv 1701.08398), as published."""

    k1: BatchSize = 20
    """Number of neighbours of an image, not counting the image itself."""
    k2: BatchSize = 6
    """Number of neighbours whose vectors are averaged, including the image itself."""
    weight: Annotated[float, Field(ge=0, le=1)] = 0.3
    """The paper's λ: the share of the original distance in the final one."""

    @model_validator(mode="after")
    def _nested(self) -> Self:
        if self.k2 > self.k1:
            raise ValueError(f"k2={self.k2} cannot be more than k1={self.k1}")
        return self


class Evaluate(Section):
    """Retrieval evaluation on the target's query and gallery."""

    batch_size: Annotated[BatchSize, RUNTIME] = 256
    """Images per forward pass."""
    max_rank: PositiveInt = 50
    """Length of the CMC curve, in ranks."""
    rerank: Annotated[Rerank | Literal[False], ADDED] = False
    """Whether the metrics of the re-ranked lists are computed too; `true`: with the published parameters."""

    feature: Annotated[Literal["before", "after"], ADDED] = "before"
    """Whether fine-tuned models are compared by the feature before or after the BNNeck; adapted ones always by the
    feature after it."""

    @field_validator("rerank", mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        if not isinstance(value, bool | Mapping | Rerank):
            raise ValueError("write true, false, or {k1: …, k2: …, weight: …}")
        return Rerank() if value is True else value


class MatrixTarget(Source):
    """A dataset on which models are evaluated."""

    name: Annotated[str, Field(pattern=r"^[\w.-]*$")] = ""
    """The name of the dataset in the table; by default the dataset's own name."""

    @property
    def label(self) -> str:
        """Return the heading of this target's column, without the edition."""
        return self.name or self.dataset

    @property
    def source(self) -> Source:
        """Return the dataset without its name in the table."""
        return Source(**{key: getattr(self, key) for key in Source.model_fields})


class Matrix(Section):
    """The evaluation of every model on every target (`rayreid matrix`)."""

    rows: bool = True
    """Whether the rows of this file are among the models, and their targets among the targets. If the file has no rows,
    the file itself counts as one."""
    models: dict[str, Checkpoint] = Field(default_factory=dict)
    """Weights files by name. They have the architecture in `backbone`, unless rayreid wrote them."""
    targets: list[MatrixTarget] = Field(default_factory=list)
    """Datasets in addition to the targets of the rows."""
