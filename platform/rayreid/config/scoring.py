"""Sections of the proxies and the scores."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rayreid.config.finetuning import Finetune
from rayreid.config.inputs import Backbone, Checkpoint, Source
from rayreid.config.pretraining import Pretrain
from rayreid.config.section import RUNTIME, Auto, BatchSize, Count, Precision, Section, Seed


class Proxy(Section):
    """The two proxies that score the pool: θs, a backbone pre-trained on the pool, and θt, θs fine-tuned on the target.

    Fields that are not given here are inherited from the sections `backbone`, `pretrain`, `finetune` and `seed` of the
    same file, before `compare` and `sweep` change them. The scores are therefore the same for all rows and trials.
    """

    seed: Seed = 0
    """Seed of the proxies' trainings."""
    backbone: Backbone = Backbone()
    """Network of the proxies."""
    pretrain: Pretrain = Pretrain()
    """Pre-training of θs on the whole pool."""
    finetune: Finetune = Finetune()
    """Fine-tuning of θs to θt on the target."""
    source: Annotated[Checkpoint | None, RUNTIME] = None
    """Checkpoint to use as θs instead of pre-training it. Its content, not its path, enters the ids of the artifacts
    made from it."""
    target: Annotated[Checkpoint | None, RUNTIME] = None
    """Checkpoint to use as θt instead of fine-tuning it."""


class ScoreTarget(Section):
    """One of several targets to select for: a labelled dataset to fine-tune θs on, a θt that the user provides, or, for
    the strategy `target_similarity`, images without labels."""

    name: Annotated[str, Field(pattern=r"^\w*$")] = ""
    """The name of the score column, `cfs_<name>`; by default the dataset's name."""
    dataset: str | None = None
    """Layout of the dataset, such as `market1501`, `folder` or `lmdb`."""
    root: str | None = None
    """The dataset's folder. A relative path is resolved against `RAYREID_DATA`, or else the current folder."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of that layout, by name."""
    verify: Literal["decode", "header"] = "decode"
    """How an ingest checks an image: `decode` decodes all of it, `header` reads its header only."""
    cameras: Literal["use", "ignore"] = "use"
    """`ignore`: all cameras count as unknown."""
    verify_source: Literal["full", "quick", "never"] = "quick"
    """How the files are compared with their store at each start: `quick`, `full` or `never`."""
    revision: Count = 0
    """Number to raise after the files changed on purpose."""
    proxy: Checkpoint | None = None
    """Checkpoint to use as θt for this target instead of fine-tuning it."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.dataset is None) == (self.proxy is None):
            raise ValueError("a target to score for has a dataset or a proxy, and not both")
        if not self.label:
            raise ValueError("a target that is given by its proxy needs a name")
        return self

    @property
    def label(self) -> str:
        """Return the name of this target's score column, without its prefix."""
        return self.name or self.dataset or ""

    @property
    def source(self) -> Source | None:
        """Return the dataset, or None if the target is given by a proxy."""
        if self.dataset is None:
            return None
        return Source(
            dataset=self.dataset,
            root=self.root,
            options=self.options,
            verify=self.verify,
            cameras=self.cameras,
            verify_source=self.verify_source,
            revision=self.revision,
        )


class Score(Section):
    """Catastrophic-forgetting scores of the pool."""

    targets: Annotated[list[ScoreTarget], RUNTIME] = Field(default_factory=list)
    """Several targets to score for in one pass; the score is their mean. Without any, the experiment's own `target` is
    used. The identity of the scores depends on the proxies made for these targets, not on these lines."""
    batch_size: Annotated[BatchSize | Auto, RUNTIME] = "auto"
    """Images per forward pass. `auto`: 32 on a CPU; 512 on a GPU, halved whenever memory does not suffice."""
    precision: Precision = "auto"
    """Number format of the forward pass; `auto`: bf16 if the device computes it natively, else fp16 on a GPU and fp32
    on a CPU."""
    compile: Annotated[bool | Auto, RUNTIME] = "auto"
    """Whether the forward pass runs compiled; `auto`: on a GPU."""
    max_bad_fraction: Annotated[float, Field(ge=0, le=1), RUNTIME] = 0.01
    """Largest share of the pool's images that may be undecodable; with more, the scoring stops."""

    @field_validator("targets")
    @classmethod
    def _told_apart(cls, targets: list[ScoreTarget]) -> list[ScoreTarget]:
        labels = [target.label for target in targets]
        if len(set(labels)) < len(labels):
            raise ValueError(f"two targets to score for are called {max(labels, key=labels.count)}; give one a name")
        return targets
