"""Section of the pre-training."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from rayreid.config import method_defaults
from rayreid.config.inputs import Backbone
from rayreid.config.section import (
    ADDED,
    MOST,
    MOST_DEEP,
    PATCH,
    RUNTIME,
    Auto,
    BatchSize,
    Count,
    NotNegative,
    Positive,
    PositiveInt,
    Precision,
    Section,
    Shares,
    Size,
    Width,
    within_epochs,
)
from rayreid.errors import UserError


class Pretrain(Section):
    """Self-supervised pre-training.

    `auto` stands for the method's published number, or for a value derived from one; see
    `rayreid.config.method_defaults`.
    """

    method: Literal["dino", "mocov3", "mocov2", "moby", "none"] = "dino"
    """Self-supervised method, or `none`."""
    epochs: PositiveInt = 100
    """Length of the training, in epochs of the selected subset."""
    steps: Annotated[PositiveInt | None, ADDED] = None
    """Number of optimizer steps, in place of `epochs`. An epoch in another key is then one of the whole pool, so that
    runs on parts of the pool differ only in their images. Where a change gives `epochs` alone, it replaces `steps`."""
    batch_size: BatchSize = 512
    """Images per optimizer step, over all workers."""
    accumulate: PositiveInt = 1
    """Micro-batches per optimizer step."""
    lr: Positive | Auto = "auto"
    """Peak learning rate; `auto`: the published rate × batch size / 256."""
    min_lr: NotNegative | Auto = "auto"
    """Learning rate at the end of the cosine."""
    warmup_epochs: Count | Auto = "auto"
    """Epochs of linear warm-up. `auto`: the published share of the epochs, e.g. 10 of 100, but at least one epoch if
    there are two or more."""
    weight_decay: NotNegative | Auto = "auto"
    """Weight decay at the start."""
    weight_decay_end: NotNegative = 0.4
    """DINO: weight decay at the end of the cosine."""
    teacher_momentum: Annotated[float, Field(ge=0, le=1)] | Auto = "auto"
    """Momentum of the network that follows the trained one. It rises to 1, except for MoCo v2."""
    teacher_temp: Positive = 0.04
    """DINO: temperature of the teacher's softmax."""
    teacher_temp_start: Annotated[Positive | None, ADDED] = None
    """The teacher's temperature in the first epoch; null: `teacher_temp` throughout."""
    teacher_temp_warmup_epochs: Annotated[Count, ADDED] = 0
    """Epochs over which the teacher's temperature then changes linearly to `teacher_temp`."""
    student_temp: Positive = 0.1
    """DINO: temperature of the student's softmax."""
    centre_momentum: Annotated[float, Field(ge=0, le=1)] = 0.9
    """DINO: momentum of the centre of the teacher's logits."""
    clip: Positive | Auto = "auto"
    """Largest norm of a gradient."""
    freeze_last_layer_epochs: Count = 1
    """DINO: epochs from the start in which the last layer of the head keeps its weights."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] | Auto = "auto"
    """Rate of drop path, in the trained network only."""
    out_dim: Width | Auto = "auto"
    """Width of the projection head's output, in channels; for DINO the number of prototypes."""
    hidden_dim: Width | Auto = "auto"
    """Width of the projection head's hidden layers, in channels."""
    bottleneck_dim: Width = 256
    """DINO: width of the head's bottleneck, in channels."""
    temperature: Annotated[Positive | Auto, ADDED] = "auto"
    """Temperature of the contrastive loss."""
    queue: Annotated[Width | Auto, ADDED] = "auto"
    """Number of keys of earlier batches that the loss contrasts with."""
    freeze_patch: Annotated[bool | Auto, ADDED] = "auto"
    """Whether a ViT's patch projection keeps its initial weights; `auto`: only with the stem `patchify`."""
    local_crops: Annotated[int, Field(ge=0, le=MOST_DEEP)] | Auto = "auto"
    """DINO: number of local crops per image."""
    local_size: Size | Auto = "auto"
    """DINO: height and width of a local crop, in pixels; `auto`: half the image size, in whole patches."""
    global_scale: Shares = (0.4, 1.0)
    """Smallest and largest share of the image's area that a global crop covers."""
    local_scale: Shares = (0.05, 0.4)
    """DINO: the same of a local crop."""
    precision: Precision = "auto"
    """Number format of forward and backward passes; `auto`: bf16 if the device computes it natively, else fp16 on a GPU
    and fp32 on a CPU."""
    compile: Annotated[bool | Auto, RUNTIME] = "auto"
    """Whether the forward and backward passes run compiled; `auto`: on a GPU."""
    checkpoint_activations: Annotated[bool, RUNTIME] = False
    """Of a ViT: the backward pass computes every block again, which takes less memory and more time."""
    deterministic: Annotated[bool, RUNTIME] = False
    """On a GPU: only kernels that give the same bits again; where there is none the training is refused."""
    checkpoint_minutes: Annotated[Positive, RUNTIME] = 10
    """Longest time between two checkpoints, in minutes. One is also written after every epoch."""
    keep_checkpoints: Annotated[PositiveInt, RUNTIME] = 2
    """Number of newest checkpoints that are kept."""
    keep_every_epochs: Annotated[PositiveInt | None, RUNTIME] = 20
    """Interval in epochs at which a checkpoint is kept for good, in the artifact's `epochs/`; null: none is."""
    probe_every: Annotated[Count | Auto, RUNTIME] = "auto"
    """Epochs between two probes of the features on the target's train split; 0: no probe; `auto`: ten over the run."""
    probe_images: Annotated[int, Field(ge=4, le=MOST), RUNTIME] = 12_000
    """Largest number of target images that a probe uses; about a sixth of them are queries."""

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        """Accept `pretrain: none` as short for `pretrain: {method: none}`."""
        return {"method": value} if isinstance(value, str) else value

    @field_validator(*method_defaults.USED_BY)
    @classmethod
    def _used(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse keys that the method does not use. A default is accepted, because every resolved file contains it."""
        reason = method_defaults.misused(info.data.get("method", "none"), str(info.field_name), value)
        if reason is not None and value != cls.model_fields[str(info.field_name)].default:
            raise ValueError(reason)
        return value

    _warmup_fits = field_validator("warmup_epochs")(within_epochs)

    def identity(self) -> dict[str, Any]:
        """Return the fields that change the result, without those that the method does not use; see `Section.identity`.

        `steps` replaces `epochs`.
        For DINO, numbers replace `auto`, except in `lr`, `warmup_epochs` and `local_size`: when the first artifacts
        were made, DINO was the only method.
        """
        fields = super().identity()
        if self.steps is not None:
            del fields["epochs"]
        if self.method in ("dino", "none"):
            return {
                name: method_defaults.DINO.numbers[name]
                if value == "auto" and name in method_defaults.DINO.numbers
                else value
                for name, value in fields.items()
            }
        return {name: value for name, value in fields.items() if method_defaults.uses(self.method, name)}

    def length(self, steps_per_epoch: int) -> float:
        """Return the number of epochs; with `steps` the last one may be a part of an epoch."""
        return self.epochs if self.steps is None else self.steps / steps_per_epoch

    def recipe(self, backbone: Backbone, steps_per_epoch: int | None = None) -> method_defaults.Recipe:
        """Return the method's hyper-parameters for a backbone, with `auto` resolved.

        Args:
            backbone: The network.
            steps_per_epoch: Optimizer steps of one epoch of the whole pool; None, as long as the pool is not known:
                the length of the warm-up means nothing if `steps` is set.

        Raises:
            UserError: The method does not support the backbone, or the warm-up is longer than the run; the message
                gives the reason.
        """
        given = {name: value for name in method_defaults.BY_METHOD if (value := getattr(self, name)) != "auto"}
        if self.method == "mocov3" and backbone.name.startswith("vit"):
            given.setdefault("freeze_patch", backbone.stem == "patchify")
        published = method_defaults.published(self.method, backbone.name)
        if self.steps is not None and steps_per_epoch is not None:
            given.setdefault("warmup_epochs", method_defaults.warmup(self.steps, published.warmup) / steps_per_epoch)
            if given["warmup_epochs"] * steps_per_epoch > self.steps:
                raise UserError(
                    f"pretrain.warmup_epochs={given['warmup_epochs']} is {given['warmup_epochs'] * steps_per_epoch:,} "
                    f"steps ({steps_per_epoch:,} each), more than the pretrain.steps={self.steps} of the run; lower it"
                )
        return published.recipe(self.batch_size, self.epochs, given)

    @property
    def probed(self) -> bool:
        """Return whether probes are wanted."""
        return self.probe_every != 0

    def probe_interval(self, epochs: float) -> int:
        """Return the epochs between two probes of a run of that length; 0: no probe."""
        return math.ceil(epochs / 10) if self.probe_every == "auto" else self.probe_every

    def crop_sizes(self, img_size: tuple[int, int], patch: int = PATCH) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the sizes of global crops (the backbone's image size) and local ones.

        `auto` for the local size is half the image size, rounded to whole patches.
        """
        if self.local_size != "auto":
            return img_size, self.local_size
        height, width = (max(1, round(side / 2 / patch)) * patch for side in img_size)
        return img_size, (height, width)
