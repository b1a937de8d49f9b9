"""What an experiment file may say.

One YAML file is one experiment. Its sections are named after the stages; a key that is not known is refused. The
defaults below are the method's published numbers (Luo et al., arXiv 2111.12084, and the DINO and TransReID recipes
it builds on); `experiments/defaults.yaml` shows all of them and is held equal to this module by a test.
Reading files, inheritance and overrides are in `rayreid.experiment_file`.
"""

import math
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from rayreid import recipes

_RUNTIME = "rayreid:runtime"
"""Marks a field that changes how a stage runs but not what it computes; such fields do not enter artifact ids."""

_ADDED = "rayreid:added"
"""Marks a field that came after artifacts had been made: at its default it does not enter ids, which stay theirs."""

PATCH = 16
"""Pixels of a ViT's patch; image sizes are multiples of it."""

Auto = Literal["auto"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
PositiveInt = Annotated[int, Field(ge=1)]
Size = Annotated[tuple[PositiveInt, PositiveInt], Field(description="height, width in pixels")]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
NotNegative = Annotated[float, Field(ge=0)]
Part = Annotated[float, Field(gt=0, le=1)]


def _ordered(share: tuple[float, float]) -> tuple[float, float]:
    if share[0] > share[1]:
        raise ValueError("write the smaller share first")
    return share


Channels = tuple[NotNegative, NotNegative, NotNegative]
"""One number per colour channel, on images in [0, 1]."""

Shares = Annotated[tuple[Part, Part], AfterValidator(_ordered)]
"""From the smaller to the larger share of an image's area."""


class Section(BaseModel):
    """A part of an experiment file: immutable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def identity(self) -> dict[str, Any]:
        """The fields that change a stage's result, as plain JSON values."""
        return {
            name: value.identity() if isinstance(value := getattr(self, name), Section) else plain[name]
            for plain in [self.model_dump(mode="json")]
            for name, field in type(self).model_fields.items()
            if _RUNTIME not in field.metadata
            if _ADDED not in field.metadata or getattr(self, name) != field.default
        }


class Source(Section):
    """A dataset: a layout that `rayreid.data.datasets` reads, and where it lies."""

    dataset: str
    root: str | None = None
    """Folder; a relative one is looked up under `RAYREID_DATA`, or else the current folder."""
    options: dict[str, Any] = {}
    verify: Literal["decode", "header"] = "decode"
    provenance: Annotated[str | None, _RUNTIME] = None
    """CSV `key,origin` that tells where each image comes from: for judging a selection, never for making one."""
    relevant: Annotated[str | None, _RUNTIME] = None
    """The origin in `provenance` that is the target's own domain."""


class Backbone(Section):
    """The network under study."""

    name: str = "vit_small"
    stem: str = "patchify"
    img_size: Size = (256, 128)
    depth: PositiveInt | None = None
    num_heads: Annotated[PositiveInt | None, _ADDED] = None
    """Attention heads of a ViT, if not the name's own: no tensor of a checkpoint shows them."""
    weights: Annotated[str | None, _RUNTIME] = None
    """A checkpoint to start from, in any format that `rayreid.models.formats` knows, or `timm:NAME`. Its content, not
    its path, is part of what is made from it."""
    strict: Annotated[bool, _RUNTIME] = True
    """Whether the checkpoint must fit whole, or what fits of it is taken. Part of what is made from it, too."""


def _within_epochs(warmup: int | Auto, info: ValidationInfo) -> int | Auto:
    epochs = info.data.get("epochs")  # absent where it is itself refused
    if warmup != "auto" and epochs is not None and warmup > epochs:
        raise ValueError(f"a warm-up cannot be longer than the {epochs} epochs of the training")
    return warmup


class Pretrain(Section):
    """Self-supervised pre-training.

    `auto` is the method's published number, or follows from one: see `rayreid.recipes`.
    """

    method: Literal["dino", "mocov3", "mocov2", "moby", "none"] = "dino"
    epochs: PositiveInt = 100
    batch_size: PositiveInt = 512
    accumulate: PositiveInt = 1
    lr: Annotated[float, Field(gt=0)] | Auto = "auto"
    min_lr: NotNegative | Auto = "auto"
    warmup_epochs: Annotated[int, Field(ge=0)] | Auto = "auto"
    """`auto`: the published share of the epochs, e.g. 10 of 100, but at least one where there are two."""
    weight_decay: NotNegative | Auto = "auto"
    weight_decay_end: NotNegative = 0.4
    teacher_momentum: Annotated[float, Field(ge=0, le=1)] | Auto = "auto"
    """Of the network that follows the trained one; rises to 1, but for MoCo v2."""
    teacher_temp: Annotated[float, Field(gt=0)] = 0.04
    student_temp: Annotated[float, Field(gt=0)] = 0.1
    centre_momentum: Annotated[float, Field(ge=0, le=1)] = 0.9
    clip: Annotated[float, Field(gt=0)] | Auto = "auto"
    freeze_last_layer_epochs: Annotated[int, Field(ge=0)] = 1
    drop_path: Annotated[float, Field(ge=0, lt=1)] | Auto = "auto"
    """In the trained network only."""
    out_dim: PositiveInt | Auto = "auto"
    hidden_dim: PositiveInt | Auto = "auto"
    bottleneck_dim: PositiveInt = 256
    temperature: Annotated[Annotated[float, Field(gt=0)] | Auto, _ADDED] = "auto"
    """Of a contrast."""
    queue: Annotated[PositiveInt | Auto, _ADDED] = "auto"
    """Keys of earlier batches to contrast with."""
    freeze_patch: Annotated[bool | Auto, _ADDED] = "auto"
    """Whether a ViT's patch projection keeps its weights; `auto`: that of the stem `patchify`."""
    local_crops: Annotated[int, Field(ge=0)] | Auto = "auto"
    local_size: Size | Auto = "auto"
    global_scale: Shares = (0.4, 1.0)
    local_scale: Shares = (0.05, 0.4)
    precision: Precision = "auto"
    checkpoint_minutes: Annotated[float, Field(gt=0), _RUNTIME] = 10
    """Longest time between two checkpoints; one is written after every epoch, too."""
    keep_checkpoints: Annotated[PositiveInt, _RUNTIME] = 2
    """How many of the newest stay."""
    keep_every_epochs: Annotated[PositiveInt | None, _RUNTIME] = 20
    """The checkpoint of every so many epochs stays for good, in the artifact's `epochs/`; null: none."""
    probe_every: Annotated[Annotated[int, Field(ge=0)] | Auto, _RUNTIME] = "auto"
    """Epochs between two probes of what is learned, on the target's train split; 0: none; `auto`: ten over the run."""
    probe_images: Annotated[int, Field(ge=4), _RUNTIME] = 12_000
    """Images of the target that a probe takes at most; about a sixth of them are queries."""

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        """`pretrain: none` is short for `pretrain: {method: none}`."""
        return {"method": value} if isinstance(value, str) else value

    @field_validator(*recipes.USED_BY)
    @classmethod
    def _used(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what the method has no use for; a default says nothing, it stands in every resolved file."""
        reason = recipes.misused(info.data.get("method", "none"), str(info.field_name), value)
        if reason is not None and value != cls.model_fields[str(info.field_name)].default:
            raise ValueError(reason)
        return value

    _warmup_fits = field_validator("warmup_epochs")(_within_epochs)

    def identity(self) -> dict[str, Any]:
        """See `Section.identity`; without what the method has no use for.

        For DINO numbers stand where the file says `auto`, but for `lr`, `warmup_epochs` and `local_size`: there were
        no other methods when the first artifacts were made.
        """
        fields = super().identity()
        if self.method in ("dino", "none"):
            return {
                name: recipes.DINO.numbers[name] if value == "auto" and name in recipes.DINO.numbers else value
                for name, value in fields.items()
            }
        return {name: value for name, value in fields.items() if recipes.uses(self.method, name)}

    def recipe(self, backbone: Backbone) -> recipes.Recipe:
        """The method's numbers on that backbone, `auto` resolved.

        Raises:
            UserError: the method and the backbone do not go together; says why.
        """
        given = {name: value for name in recipes.BY_METHOD if (value := getattr(self, name)) != "auto"}
        if self.method == "mocov3" and backbone.name.startswith("vit"):
            given.setdefault("freeze_patch", backbone.stem == "patchify")
        return recipes.published(self.method, backbone.name).recipe(self.batch_size, self.epochs, given)

    @property
    def probe_epochs(self) -> int:
        """Epochs between two probes; 0: none."""
        return math.ceil(self.epochs / 10) if self.probe_every == "auto" else self.probe_every

    def crop_sizes(self, img_size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Sizes of global crops (the backbone's image size) and of local ones (`auto`: half of it, in patches)."""
        if self.local_size != "auto":
            return img_size, self.local_size
        height, width = (max(1, round(side / 2 / PATCH)) * PATCH for side in img_size)
        return img_size, (height, width)


class Finetune(Section):
    """Supervised fine-tuning (identity and triplet loss with BNNeck)."""

    epochs: PositiveInt = 120
    identities: PositiveInt = 16
    instances: Annotated[int, Field(ge=2)] = 4
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 4e-4
    weight_decay: NotNegative = 1e-4
    bias_lr_factor: NotNegative = 2.0
    warmup_epochs: Annotated[int, Field(ge=0)] | Auto = "auto"
    """`auto`: a sixth of the epochs (the published 20 of 120), but at least one where there are two."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    erasing: Annotated[float, Field(ge=0, le=1)] = 0.5
    padding: Annotated[int, Field(ge=0)] = 10
    global_mining: bool = False
    precision: Precision = "auto"
    checkpoint_minutes: Annotated[float, Field(gt=0), _RUNTIME] = 10
    keep_checkpoints: Annotated[PositiveInt, _RUNTIME] = 2
    keep_every_epochs: Annotated[PositiveInt | None, _RUNTIME] = None

    _warmup_fits = field_validator("warmup_epochs")(_within_epochs)

    @property
    def warmup(self) -> int:
        """Epochs of warm-up."""
        return recipes.warmup(self.epochs, Fraction(1, 6)) if self.warmup_epochs == "auto" else self.warmup_epochs


class Checkpoint(Section):
    """Weights that the user has, in place of a proxy trained here; `FILE` is short for `{weights: FILE}`."""

    weights: str
    """A checkpoint of the architecture in `proxy.backbone`, in any format that `rayreid.models.weights` knows."""
    mean: Channels | Auto = "auto"
    """How images are normalised for it. `auto`: as the file says, if it is ours; else 0.5 for a ReID model and
    ImageNet's numbers for anything else."""
    std: Channels | Auto = "auto"

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        return {"weights": value} if isinstance(value, str) else value


class Adapt(Section):
    """Cluster contrast on the target, without its labels: USL, or UDA from a labelled source."""

    method: Literal["none", "usl", "uda"] = "none"
    """`usl` starts from the pre-trained backbone, `uda` from that backbone fine-tuned on `source`; `none`: the target's
    labels are used, by `finetune`."""
    epochs: Annotated[int, Field(ge=0)] = 50
    """0: what adaptation would start from is evaluated as it is."""
    iterations: PositiveInt = 200
    """Optimizer steps per epoch."""
    clusters: Annotated[int, Field(ge=2)] = 32
    instances: Annotated[int, Field(ge=2)] = 8
    k1: Annotated[int, Field(ge=2)] = 30
    """Entries of a neighbour list, the image itself included."""
    k2: Annotated[int, Field(ge=1, validate_default=True)] = 6
    eps: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """DBSCAN's ε, a Jaccard distance; published 0.6 for Market-1501, 0.7 for MSMT17."""
    min_samples: PositiveInt = 4
    search: Literal["torch", "faiss", "approximate"] = "torch"
    memory: Literal["hard", "mean"] = "hard"
    memory_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.2
    temperature: Annotated[float, Field(gt=0)] = 0.05
    lr: Annotated[float, Field(gt=0)] = 3.5e-4
    decay_every: PositiveInt | Auto = "auto"
    """Epochs after which the rate falls to a tenth; `auto`: two fifths of them (the published 20 of 50)."""
    weight_decay: NotNegative = 5e-4
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.3
    erasing: Annotated[float, Field(ge=0, le=1)] = 0.5
    padding: Annotated[int, Field(ge=0)] = 10
    precision: Precision = "fp32"
    checkpoint_minutes: Annotated[float, Field(gt=0), _RUNTIME] = 10
    keep_checkpoints: Annotated[PositiveInt, _RUNTIME] = 2
    keep_every_epochs: Annotated[PositiveInt | None, _RUNTIME] = None
    evaluate_every: Annotated[int, Field(ge=0), _RUNTIME] = 0
    """Epochs between two evaluations on query and gallery, for the record alone; 0: none but the stage `evaluate`'s."""

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        """`adapt: usl` is short for `adapt: {method: usl}`."""
        return {"method": value} if isinstance(value, str) else value

    @field_validator("k2")
    @classmethod
    def _within_lists(cls, k2: int, info: ValidationInfo) -> int:
        k1 = info.data.get("k1")  # absent where it is itself refused
        if k1 is not None and k2 > k1:
            raise ValueError(f"it averages over entries of a list, and a list has {k1} (adapt.k1)")
        return k2

    @property
    def decay_epochs(self) -> int:
        """Epochs after which the rate falls."""
        return max(1, math.ceil(2 * self.epochs / 5)) if self.decay_every == "auto" else self.decay_every


class Proxy(Section):
    """The two proxies that score the pool: θs = backbone pre-trained on the pool, θt = θs fine-tuned on the target.

    What is not said here is taken from the sections `backbone`, `pretrain`, `finetune` and `seed` of the same file,
    before `compare` and `sweep` change them: so neither changes the scores.
    """

    seed: Seed = 0
    backbone: Backbone = Backbone()
    pretrain: Pretrain = Pretrain()
    finetune: Finetune = Finetune()
    source: Annotated[Checkpoint | None, _RUNTIME] = None
    """θs, in place of pre-training it. Here, too, the file's content is part of what is made from it, not its path."""
    target: Annotated[Checkpoint | None, _RUNTIME] = None
    """θt, in place of fine-tuning it."""


class ScoreTarget(Section):
    """One of several targets to score for: a labelled dataset that θs is fine-tuned on, or a θt that the user has."""

    name: Annotated[str, Field(pattern=r"^\w*$")] = ""
    """The name of its column, `cfs_<name>`; the dataset's unless given."""
    dataset: str | None = None
    root: str | None = None
    options: dict[str, Any] = {}
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

    targets: Annotated[list[ScoreTarget], _RUNTIME] = []
    """Several targets to score for in one pass; the score is the mean over them. None: the experiment's own `target`.
    The proxies made of them, not these lines, are part of the scores' identity."""
    batch_size: Annotated[PositiveInt | Auto, _RUNTIME] = "auto"
    """`auto`: 32 on a CPU; on a GPU 512, halved whenever memory does not suffice."""
    precision: Precision = "auto"
    max_bad_fraction: Annotated[float, Field(ge=0, le=1), _RUNTIME] = 0.01

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
    list: Annotated[str | None, _RUNTIME] = None
    """Ordered file list for the strategy `list`. Its content, not its path, is part of the subset's identity."""
    clusters: Annotated[PositiveInt | Auto, _RUNTIME] = "auto"
    """Clusters for the strategy `cluster`, and part of no other's identity; `auto`: the square root of the number of
    images."""

    @property
    def whole(self) -> bool:
        """Whether this keeps every image, whatever the strategy."""
        return self.count is None and self.fraction == 1.0


class Evaluate(Section):
    """Retrieval evaluation on the target's query and gallery."""

    batch_size: Annotated[PositiveInt, _RUNTIME] = 256
    max_rank: PositiveInt = 50


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


class Sweep(Section):
    """Tune over dotted keys: every combination (`grid`) of the values in `parameters`."""

    parameters: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(min_length=1)
    max_concurrent: PositiveInt | Auto = "auto"


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
    compare: list[dict[str, Any]] = []
    """Rows to run beside one another: each a set of changes to this file, with an optional `label`."""
    sweep: Sweep | None = None
