"""Sections that name what there is: datasets, networks, checkpoints."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rayreid.config.section import ADDED, RUNTIME, Auto, Channels, PositiveInt, Section, Size


class Source(Section):
    """A dataset: a layout that `rayreid.data.datasets` reads, and where it lies."""

    dataset: str
    root: str | None = None
    """Folder; a relative one is looked up under `RAYREID_DATA`, or else the current folder."""
    options: dict[str, Any] = Field(default_factory=dict)
    verify: Literal["decode", "header"] = "decode"
    provenance: Annotated[str | None, RUNTIME] = None
    """CSV `key,origin` that tells where each image comes from: for judging a selection, never for making one."""
    relevant: Annotated[str | None, RUNTIME] = None
    """The origin in `provenance` that is the target's own domain."""


class Backbone(Section):
    """The network under study."""

    name: str = "vit_small"
    stem: str = "patchify"
    img_size: Size = (256, 128)
    depth: PositiveInt | None = None
    num_heads: Annotated[PositiveInt | None, ADDED] = None
    """Attention heads of a ViT, if not the name's own: no tensor of a checkpoint shows them."""
    weights: Annotated[str | None, RUNTIME] = None
    """A checkpoint to start from, in any format that `rayreid.models.formats` knows, or `timm:NAME`. Its content, not
    its path, is part of what is made from it."""
    strict: Annotated[bool, RUNTIME] = True
    """Whether the checkpoint must fit whole, or what fits of it is taken. Part of what is made from it, too."""


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
