"""The schema of an experiment file.

One YAML file describes one experiment. Its sections are named after the stages, and unknown keys are refused. The
defaults are the published numbers of the method (Luo et al., arXiv 2111.12084, and the DINO and TransReID recipes on
which it builds). `experiments/defaults.yaml` shows all of them; a test keeps it equal to this package.
`rayreid.config.loading` reads the files and applies inheritance and overrides.
"""

from typing import Annotated, Any

from pydantic import Field, SerializerFunctionWrapHandler, ValidationInfo, field_validator, model_serializer

from rayreid.config.adaptation import Adapt
from rayreid.config.evaluation import Evaluate, Matrix, MatrixTarget, Rerank
from rayreid.config.finetuning import Finetune
from rayreid.config.inputs import Backbone, Checkpoint, Ingest, Source
from rayreid.config.pretraining import Pretrain
from rayreid.config.scoring import Proxy, Score, ScoreTarget
from rayreid.config.section import MOST, PATCH, Auto, PositiveInt, Section, Seed
from rayreid.config.selection import CombinedPart, Ranked, Select
from rayreid.config.sweep import Range, Sweep

__all__ = [
    "PATCH",
    "Adapt",
    "Auto",
    "Backbone",
    "Checkpoint",
    "CombinedPart",
    "Evaluate",
    "Experiment",
    "Finetune",
    "Ingest",
    "Matrix",
    "MatrixTarget",
    "Pretrain",
    "Proxy",
    "Range",
    "Ranked",
    "Rerank",
    "Resources",
    "Score",
    "ScoreTarget",
    "Section",
    "Select",
    "Source",
    "Sweep",
]


class Resources(Section):
    """The part of the cluster that a stage may use.

    No field enters an artifact id. The number of training workers nevertheless changes what is learned: batch norm and
    triplet mining are local to each worker unless `finetune.global_mining` is set, and drop path always is. Artifacts
    therefore record the number of workers (`workers`).
    """

    workers: PositiveInt | Auto = "auto"
    """Number of training workers; `auto`: one per GPU that Ray sees, or a single one for all CPUs if there is no GPU.
    """
    cpus_per_worker: PositiveInt | Auto = "auto"
    """CPUs of each worker; `auto`: an equal share of those that Ray sees."""
    gpu: bool | Auto = "auto"
    """Whether each training worker takes a GPU. `auto`: if Ray sees one. `true`: always; an autoscaling cluster then
    starts one."""
    max_failures: Annotated[int, Field(ge=-1, le=MOST)] = 3
    """Number of times that a training stage restarts after losing a worker; -1: no limit."""


class Experiment(Section):
    """One resolved experiment file."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "experiment"
    """Name of the experiment in MLflow and under `<root>/experiments/`."""
    seed: Seed = 0
    """Seed of the order of images, augmentation, initial weights and the strategies `random` and `cluster`."""
    pool: Source
    """The dataset without labels, from which images are selected for pre-training."""
    target: Source
    """The labelled dataset: `train` is for fine-tuning, `query` and `gallery` are for evaluation."""
    source: Source | None = None
    """The labelled dataset from which domain adaptation starts (`adapt: uda`); its train split is used."""
    ingest: Ingest = Ingest()
    """The reading of datasets into image stores."""
    backbone: Backbone = Backbone()
    """The network under study."""
    proxy: Proxy = Proxy()
    """The two models whose features score the pool."""
    pretrain: Pretrain = Pretrain()
    """Pre-training without labels; `none` is short for `{method: none}`."""
    score: Score = Score()
    """Scores of the pool's images."""
    select: Select = Select()
    """The part of the pool to pre-train on."""
    finetune: Finetune = Finetune()
    """Training on the target's labels."""
    adapt: Adapt = Adapt()
    """Training on the target's images without their labels; `usl` and `uda` are short for `{method: …}`."""
    evaluate: Evaluate = Evaluate()
    """Retrieval on the target's query and gallery."""
    resources: Resources = Resources()
    """The part of the cluster that a stage may use."""
    compare: list[dict[str, Any]] = Field(default_factory=list)
    """Rows of the comparison. Each is a set of changes to this file, with an optional `label`."""
    matrix: Matrix = Matrix()
    """Every model on every target (`rayreid matrix`)."""
    sweep: Sweep | None = None
    """Many trials, by values of dotted keys."""
    seeds: list[Seed] = Field(default_factory=list)
    """Seeds with which each row is run, instead of `seed`; the proxies keep the seed of the file, so that the scores
    are the same for all seeds."""

    @field_validator("seeds")
    @classmethod
    def _told_apart(cls, seeds: list[int], info: ValidationInfo) -> list[int]:
        twice = [seed for seed in dict.fromkeys(seeds) if seeds.count(seed) > 1]
        if twice:
            raise ValueError(f"{twice[0]} is given twice; leave one out")
        if seeds and info.data.get("sweep") is not None:
            raise ValueError("a sweep names its seeds among its values: sweep.parameters: {seed: [0, 1, 2]}")
        return seeds

    @model_serializer(mode="wrap")
    def _without_empty_seeds(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `seeds` out where there are none, so that the hash by which runs of older files are found stays."""
        tree = dump(self)
        return tree if self.seeds else {key: value for key, value in tree.items() if key != "seeds"}

    @property
    def compares(self) -> bool:
        """Return whether the file stands for several experiments side by side: rows, or one row with several seeds."""
        return bool(self.compare or self.seeds)

    @property
    def alone(self) -> "Experiment":
        """Return the file as one experiment: without rows, seeds and sweep."""
        return self.model_copy(update={"compare": [], "seeds": [], "sweep": None})

    @property
    def selects(self) -> bool:
        """Return whether the experiment pre-trains on a part of its pool, not on the whole pool and not on nothing."""
        return self.pretrain.method != "none" and not self.select.whole
