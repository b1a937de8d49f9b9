"""Sections of the scores and the subset."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rayreid.config.inputs import Backbone, Checkpoint, Source
from rayreid.config.section import RUNTIME, Auto, Part, PositiveInt, Precision, Section, Seed
from rayreid.config.training import Finetune, Pretrain


class Proxy(Section):
    """The two proxies that score the pool: θs = backbone pre-trained on the pool, θt = θs fine-tuned on the target.

    What is not said here is taken from the sections `backbone`, `pretrain`, `finetune` and `seed` of the same file,
    before `compare` and `sweep` change them: so neither changes the scores.
    """

    seed: Seed = 0
    backbone: Backbone = Backbone()
    pretrain: Pretrain = Pretrain()
    finetune: Finetune = Finetune()
    source: Annotated[Checkpoint | None, RUNTIME] = None
    """θs, in place of pre-training it. Here, too, the file's content is part of what is made from it, not its path."""
    target: Annotated[Checkpoint | None, RUNTIME] = None
    """θt, in place of fine-tuning it."""


class ScoreTarget(Section):
    """One of several targets to score for: a labelled dataset that θs is fine-tuned on, or a θt that the user has."""

    name: Annotated[str, Field(pattern=r"^\w*$")] = ""
    """The name of its column, `cfs_<name>`; the dataset's unless given."""
    dataset: str | None = None
    root: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    verify: Literal["decode", "header"] = "decode"
    proxy: Checkpoint | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.dataset is None) == (self.proxy is None):
            raise ValueError("a target to score for has a dataset to fine-tune on or a proxy, and not both")
        if not self.label:
            raise ValueError("a target that is given by its proxy needs a name")
        return self

    @property
    def label(self) -> str:
        """What its column is called by."""
        return self.name or self.dataset or ""

    @property
    def source(self) -> Source | None:
        """The labelled dataset, if it is given by one."""
        if self.dataset is None:
            return None
        return Source(dataset=self.dataset, root=self.root, options=self.options, verify=self.verify)


class Score(Section):
    """Catastrophic-forgetting scores of the pool."""

    targets: Annotated[list[ScoreTarget], RUNTIME] = Field(default_factory=list)
    """Several targets to score for in one pass; the score is the mean over them. None: the experiment's own `target`.
    The proxies made of them, not these lines, are part of the scores' identity."""
    batch_size: Annotated[PositiveInt | Auto, RUNTIME] = "auto"
    """`auto`: 32 on a CPU; on a GPU 512, halved whenever memory does not suffice."""
    precision: Precision = "auto"
    compile: Annotated[bool | Auto, RUNTIME] = "auto"
    max_bad_fraction: Annotated[float, Field(ge=0, le=1), RUNTIME] = 0.01

    @field_validator("targets")
    @classmethod
    def _told_apart(cls, targets: list[ScoreTarget]) -> list[ScoreTarget]:
        labels = [target.label for target in targets]
        if len(set(labels)) < len(labels):
            raise ValueError(f"two targets to score for are called {max(labels, key=labels.count)}; give one a name")
        return targets


class Select(Section):
    """Which part of the pool to pre-train on."""

    strategy: Literal["cfs", "target_similarity", "cluster", "random", "list"] = "cfs"
    fraction: Part = 0.5
    count: PositiveInt | None = None
    """A number of images instead of a fraction."""
    list: Annotated[str | None, RUNTIME] = None
    """Ordered file list for the strategy `list`. Its content, not its path, is part of the subset's identity."""
    clusters: Annotated[PositiveInt | Auto, RUNTIME] = "auto"
    """Clusters for the strategy `cluster`, and part of no other's identity; `auto`: the square root of the number of
    images."""

    @property
    def whole(self) -> bool:
        """Whether this keeps every image, whatever the strategy."""
        return self.count is None and self.fraction == 1.0
