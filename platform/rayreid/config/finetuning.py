"""Section of the fine-tuning."""

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, field_validator

from rayreid.config import method_defaults
from rayreid.config.section import (
    ADDED,
    RUNTIME,
    Auto,
    BatchSize,
    Count,
    NotNegative,
    Pixels,
    Positive,
    PositiveInt,
    Precision,
    Section,
    SeveralInABatch,
    within_epochs,
)


class Finetune(Section):
    """Supervised fine-tuning (identity and triplet loss with BNNeck)."""

    epochs: PositiveInt = 120
    """Length of the training, in epochs."""
    identities: BatchSize = 16
    """Identities in a batch, over all workers."""
    instances: SeveralInABatch = 4
    """Images of each identity in a batch."""
    sampler: Annotated[Literal["identity", "camera", "plain", "balanced"], ADDED] = "identity"
    """How a batch of P × K images is drawn. `identity` and `camera` take P identities and K images of each, `camera`
    from different cameras. `plain` shuffles all images; `balanced` takes every identity equally often."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimizer: SGD with momentum 0.9, or AdamW."""
    lr: Positive = 4e-4
    """Peak learning rate."""
    weight_decay: NotNegative = 1e-4
    """Weight decay; none on biases and 1-D parameters of a ViT's pre-training."""
    bias_lr_factor: NotNegative = 2.0
    """Factor by which the peak rate of biases is larger."""
    warmup_epochs: Count | Auto = "auto"
    """Epochs of linear warm-up. `auto`: a sixth of the epochs (the published 20 of 120), but at least one if there are
    two or more."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Rate of drop path (stochastic depth)."""
    erasing: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability of random erasing."""
    padding: Pixels = 10
    """Pixels of padding on each side before the random crop."""
    margin: Annotated[NotNegative | None, ADDED] = None
    """Margin of the triplet loss, in the feature's unit; null: the soft margin."""
    global_mining: bool = False
    """Whether triplets and batch statistics cover the images of all workers."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1), ADDED] = 0.0
    """Share of the target distribution that is spread evenly over all identities."""
    triplet_weight: Annotated[NotNegative, ADDED] = 1.0
    """Factor of the triplet loss."""
    triplet_start_epoch: Annotated[Count, ADDED] = 0
    """First epoch, from 0, in which the triplet loss counts."""
    triplet_normalise: Annotated[bool, ADDED] = False
    """Whether the triplet loss compares features of length 1."""
    layer_decay: Annotated[float, Field(gt=0, le=1), ADDED] = 1.0
    """Factor of the learning rate from each layer to the one below it."""
    freeze_epochs: Annotated[Count, ADDED] = 0
    """Epochs from the start in which the backbone's weights stay as they are."""
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
    keep_every_epochs: Annotated[PositiveInt | None, RUNTIME] = None
    """Interval in epochs at which a checkpoint is kept for good, in the artifact's `epochs/`; null: none is."""
    evaluate_every: Annotated[Count, RUNTIME] = 0
    """Epochs between two evaluations on query and gallery, for the record only; 0: only the stage `evaluate` evaluates.
    """

    _warmup_fits = field_validator("warmup_epochs")(within_epochs)

    @property
    def by_identity(self) -> bool:
        """Return whether batches consist of whole identities."""
        return self.sampler in ("identity", "camera")

    @property
    def batch_size(self) -> int:
        """Return the number of images in a batch, over all workers."""
        return self.identities * self.instances

    @property
    def warmup(self) -> int:
        """Return the number of warm-up epochs."""
        return (
            method_defaults.warmup(self.epochs, Fraction(1, 6)) if self.warmup_epochs == "auto" else self.warmup_epochs
        )
