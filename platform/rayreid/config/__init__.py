"""What an experiment file may say.

One YAML file is one experiment. Its sections are named after the stages; a key that is not known is refused. The
defaults below are the method's published numbers (Luo et al., arXiv 2111.12084, and the DINO and TransReID recipes
it builds on); `experiments/defaults.yaml` shows all of them and is held equal to this module by a test.
Reading files, inheritance and overrides are in `rayreid.config.loading`.
"""

from typing import Annotated, Any

from pydantic import Field

from rayreid.config.evaluation import Evaluate, Matrix, MatrixTarget, Rerank
from rayreid.config.inputs import Backbone, Checkpoint, Source
from rayreid.config.section import PATCH, Auto, PositiveInt, Section, Seed
from rayreid.config.selection import Proxy, Score, ScoreTarget, Select
from rayreid.config.sweep import Range, Sweep
from rayreid.config.training import Adapt, Finetune, Pretrain

__all__ = [
    "PATCH",
    "Adapt",
    "Auto",
    "Backbone",
    "Checkpoint",
    "Evaluate",
    "Experiment",
    "Finetune",
    "Matrix",
    "MatrixTarget",
    "Pretrain",
    "Proxy",
    "Range",
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
    """What a stage may use of the cluster.

    No part of any id. The number of training workers does change what is learned: unless `finetune.global_mining` is
    set, batch norm and the mining of triplets are each worker's own, and drop path always is. Artifacts record how
    many there were (`workers`).
    """

    workers: PositiveInt | Auto = "auto"
    """Training workers; `auto`: one per GPU that Ray sees, else one for all CPUs."""
    cpus_per_worker: PositiveInt | Auto = "auto"
    gpu: bool | Auto = "auto"
    """Whether training workers take a GPU each; `auto`: if Ray sees one. `true`: an autoscaling cluster starts them."""
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """Restarts of a training stage after a lost worker; -1: without limit."""


class Experiment(Section):
    """One experiment file, resolved."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "experiment"
    seed: Seed = 0
    pool: Source
    target: Source
    source: Source | None = None
    """The labelled dataset that domain adaptation starts from (`adapt: uda`); its split train is used."""
    backbone: Backbone = Backbone()
    proxy: Proxy = Proxy()
    pretrain: Pretrain = Pretrain()
    score: Score = Score()
    select: Select = Select()
    finetune: Finetune = Finetune()
    adapt: Adapt = Adapt()
    evaluate: Evaluate = Evaluate()
    resources: Resources = Resources()
    compare: list[dict[str, Any]] = Field(default_factory=list)
    """Rows to run beside one another: each a set of changes to this file, with an optional `label`."""
    matrix: Matrix = Matrix()
    sweep: Sweep | None = None

    @property
    def selects(self) -> bool:
        """Return whether the experiment pre-trains on a part of its pool, not on the whole pool and not on nothing."""
        return self.pretrain.method != "none" and not self.select.whole
