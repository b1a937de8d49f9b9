"""Sections that describe existing inputs: datasets, networks and checkpoints."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rayreid.config.section import (
    ADDED,
    DINOV2_PATCH,
    PATCH,
    RUNTIME,
    Auto,
    Channels,
    Count,
    Depth,
    Part,
    Section,
    Size,
)


class Source(Section):
    """A dataset: its location, and its layout, which is one that `rayreid.data.datasets` can read."""

    dataset: str
    """Layout of the dataset, such as `market1501`, `folder` or `lmdb`."""
    root: str | None = None
    """The dataset's folder. A relative path is resolved against `RAYREID_DATA`, or else the current folder."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of that layout, by name."""
    verify: Literal["decode", "header"] = "decode"
    """How an ingest checks an image: `decode` decodes all of it, `header` reads its header only."""
    cameras: Annotated[Literal["use", "ignore"], ADDED] = "use"
    """`ignore`: all cameras count as unknown, so that a match by the query's own camera counts. For a set with one
    camera, of which nothing else could be evaluated."""
    verify_source: Annotated[Literal["full", "quick", "never"], RUNTIME] = "quick"
    """How the files are compared with the store that was made of them, at each start. `quick`: names, sizes and times,
    and contents only if these differ. `full`: all contents. `never`: not at all."""
    revision: Annotated[Count, ADDED] = 0
    """Number to raise after the files changed on purpose: another revision is another store."""
    allow_test_images: Annotated[bool, RUNTIME] = False
    """Whether a pool may contain query or gallery images of the target. If it does, all results say so."""
    provenance: Annotated[str | None, RUNTIME] = None
    """Table `key,origin`, CSV or Parquet, with the origin of each image. It is used to judge a selection, never to make
    one."""
    relevant: Annotated[str | None, RUNTIME] = None
    """The origin in `provenance` that is the target's own domain."""


class Ingest(Section):
    """The reading of datasets into image stores."""

    max_rejected: Annotated[float, Field(ge=0, le=1), RUNTIME] = 0.05
    """Largest share of a dataset's images that may be rejected; with more, the ingest fails."""


class Backbone(Section):
    """The network under study."""

    name: str = "vit_small"
    """Architecture: `vit_tiny`, `vit_small`, `vit_base`, `vit_large`, `swin_tiny`, `swin_small`, `swin_base`,
    `resnet50`, or a published one."""
    stem: str = "patchify"
    """Of a ViT: the layers that turn pixels into tokens, `patchify`, `conv` or `ics`."""
    img_size: Size = (256, 128)
    """Height and width of an image, in pixels."""
    depth: Depth | None = None
    """Number of blocks of a ViT; null: the number that belongs to the name."""
    num_heads: Annotated[Depth | None, ADDED] = None
    """Attention heads of a ViT, if not those that the name implies. The tensors of a checkpoint do not reveal the
    number."""
    last_stride: Annotated[Literal[1, 2] | None, ADDED] = None
    """Stride of a ResNet's last stage, if not the one that the name implies."""
    semantic_weight: Annotated[Part | Literal[0] | None, ADDED] = None
    """SOLIDER's λ, from 0 (appearance) to 1 (semantics), if not 0.2."""
    weights: Annotated[str | None, RUNTIME] = None
    """Checkpoint to start from, in any format that `rayreid.models.formats` knows, or `timm:NAME`. Its content, not its
    path, enters the ids of the artifacts made from it."""
    strict: Annotated[bool, RUNTIME] = True
    """Whether the checkpoint must match the network completely; otherwise the tensors that fit are loaded. The value
    also enters the ids of the artifacts made from it."""

    @property
    def patch(self) -> int:
        """Return the side of a ViT's patch in pixels."""
        return DINOV2_PATCH if "_dinov2" in self.name else PATCH

    def options(self) -> dict[str, Any]:
        """Return the options of the network that differ from what its name implies."""
        values = {name: getattr(self, name) for name in ("num_heads", "last_stride", "semantic_weight")}
        return {name: value for name, value in values.items() if value is not None}


class Checkpoint(Section):
    """Weights that the user provides instead of training a proxy; `FILE` is short for `{weights: FILE}`."""

    weights: str
    """Checkpoint of the architecture in `proxy.backbone`, in any format that `rayreid.models.weights` knows."""
    mean: Channels | Auto = "auto"
    """Mean for normalising the images. `auto`: the value in the file if rayreid wrote it, else 0.5 for a ReID model and
    ImageNet's numbers for any other model."""
    std: Channels | Auto = "auto"
    """Standard deviation for normalising the images; `auto`: as for `mean`."""

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        return {"weights": value} if isinstance(value, str) else value
