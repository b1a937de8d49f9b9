"""Section of the adaptation without labels of the target."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from rayreid.config.section import (
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
)


class Adapt(Section):
    """Cluster contrast on the target without its labels: USL, or UDA from a labelled source."""

    method: Literal["none", "usl", "uda"] = "none"
    """`usl` starts from the pre-trained backbone, `uda` from that backbone fine-tuned on `source`. `none`: the target's
    labels are used, by `finetune`."""
    epochs: Count = 50
    """Number of epochs; 0: the network that adaptation would start from is evaluated as it is."""
    iterations: PositiveInt = 200
    """Optimizer steps per epoch."""
    clusters: SeveralInABatch = 32
    """Clusters in a batch, over all workers."""
    instances: SeveralInABatch = 8
    """Images of each cluster in a batch."""
    k1: SeveralInABatch = 30
    """Entries of a neighbour list, including the image itself."""
    k2: Annotated[BatchSize, Field(validate_default=True)] = 6
    """Entries of a neighbour list whose vectors are averaged, including the image itself."""
    eps: Annotated[float, Field(gt=0, lt=1)] | Auto = 0.6
    """DBSCAN's ε, a Jaccard distance; published 0.6 for Market-1501, 0.7 for MSMT17. `auto`: in each epoch, the one of
    0.30, 0.35, …, 0.70 that gives the most clusters."""
    min_samples: PositiveInt = 4
    """DBSCAN's smallest number of points in a neighbourhood."""
    search: Literal["torch", "faiss", "approximate"] = "torch"
    """Nearest-neighbour search: `torch` and `faiss` are exact; `approximate` (faiss) is for millions of images."""
    memory: Literal["hard", "mean"] = "hard"
    """Which images of a batch update the vector of their cluster: the least similar one (`hard`), or all (`mean`)."""
    memory_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the old vector that stays in an update."""
    temperature: Positive = 0.05
    """Temperature of the contrastive loss."""
    lr: Positive = 3.5e-4
    """Learning rate of all parameters."""
    decay_every: PositiveInt | Auto = "auto"
    """Epochs after which the learning rate falls to a tenth; `auto`: two fifths of the epochs (the published 20 of 50).
    """
    weight_decay: NotNegative = 5e-4
    """Weight decay; none on biases and 1-D parameters of a ViT's pre-training."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Rate of drop path (stochastic depth)."""
    erasing: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability of random erasing."""
    padding: Pixels = 10
    """Pixels of padding on each side before the random crop."""
    precision: Precision = "fp32"
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

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        """Accept `adapt: usl` as short for `adapt: {method: usl}`."""
        return {"method": value} if isinstance(value, str) else value

    @field_validator("k2")
    @classmethod
    def _within_lists(cls, k2: int, info: ValidationInfo) -> int:
        k1 = info.data.get("k1")  # absent if it was refused itself
        if k1 is not None and k2 > k1:
            raise ValueError(f"it averages over entries of a list, and a list has {k1} (adapt.k1)")
        return k2

    @property
    def decay_epochs(self) -> int:
        """Return the number of epochs after which the learning rate falls."""
        return max(1, math.ceil(2 * self.epochs / 5)) if self.decay_every == "auto" else self.decay_every
