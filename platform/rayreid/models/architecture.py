"""Recognition of an architecture: the arguments of `build_backbone` that fit the tensors of a backbone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rayreid.errors import UserError
from rayreid.models.backbones import SWINS, VITS
from rayreid.models.checkpoints import describe, stem_of
from rayreid.models.positions import ambiguity, class_rows, possible_grids

HEAD_WIDTH = 64  # channels per attention head in every published ViT whose name implies its width
RESNET50_BLOCKS = (3, 4, 6, 3)
PATCH_OF_STEM = {"patchify": 1, "conv": 2, "ics": 2}  # the layers in front of the last convolution halve the image


@dataclass(frozen=True)
class Shape:
    """The architecture that a backbone's tensors reveal.

    Attributes:
        spec: Arguments of `build_backbone`, JSON-able. Except for the depth, those that the name implies are left out.
        unknown: Argument that the tensors do not reveal → the reason, and the option to give.
    """

    spec: dict[str, Any]
    unknown: dict[str, str] = field(default_factory=dict)


def recognise(
    state: Mapping[str, Tensor], *, header: Mapping[str, Any] | None = None, hint: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the arguments of `build_backbone` for a backbone's tensors.

    Args:
        state: Name → tensor, with names as in timm.
        header: The header of a file of ours, which is complete; None for files of other origin.
        hint: Arguments that the user knows better, e.g. `img_size`, `num_heads`.

    Raises:
        UserError: The tensors belong to no known backbone, or an argument is neither in the tensors nor in the hint.
    """
    known = {key: value for key, value in (hint or {}).items() if value is not None}
    if header is not None:
        return {**header["backbone"], **known}
    shape = read_off(state)
    for argument, reason in shape.unknown.items():
        if argument not in known:
            raise UserError(reason)
    return {**shape.spec, **known}


def read_off(state: Mapping[str, Tensor]) -> Shape:
    """Return the architecture that a backbone's tensors reveal by themselves.

    Raises:
        UserError: The tensors belong to no known backbone.
    """
    if "cls_token" in state and "pos_embed" in state and _count(state, "blocks."):
        return _vit(state)
    if any(name.startswith("layers.0.blocks.") for name in state) and "patch_embed.proj.weight" in state:
        return _swin(state)
    if "layer4.0.conv1.weight" in state:
        return _resnet(state)
    raise UserError(f"the file holds no backbone that rayreid can build, but {describe(state)}")


def _vit(state: Mapping[str, Tensor]) -> Shape:
    stem, width, unknown = stem_of(state), state["cls_token"].shape[-1], {}
    name = _named(width, {name: int(own["embed_dim"]) for name, own in VITS.items()})
    patch = _patch(state, stem)
    spec: dict[str, Any] = {"name": name, "stem": stem, "depth": _count(state, "blocks.")}
    if width != VITS[name]["embed_dim"]:
        spec["embed_dim"] = width
        if width % HEAD_WIDTH:
            unknown["num_heads"] = (
                f"the tensors do not reveal how many heads a ViT of width {width} has"
                f" (not a multiple of {HEAD_WIDTH}); give --num-heads"
            )
        else:
            spec["num_heads"] = width // HEAD_WIDTH
    if patch != (16, 16):
        spec["patch_size"] = patch[0] if patch[0] == patch[1] else list(patch)
    _mlp_ratio(state, spec, "blocks.0.mlp.fc1.weight")
    positions = state["pos_embed"].shape[1] - class_rows(state)
    grids = possible_grids(positions)
    if len(grids) != 1:
        unknown["img_size"] = (
            f"the tensors do not reveal the image size: {ambiguity(positions, patch)}; give --img-size HEIGHT WIDTH"
        )
    else:
        spec["img_size"] = [grids[0][0] * patch[0], grids[0][1] * patch[1]]
    return Shape(spec, unknown)


def _swin(state: Mapping[str, Tensor]) -> Shape:
    """Return the architecture of a Swin.

    Its weights do not depend on the image size, so `img_size` is left at the default.
    """
    tables = [
        state.get(f"layers.{i}.blocks.0.attn.relative_position_bias_table") for i in range(_count(state, "layers."))
    ]
    if any(table is None for table in tables):
        raise UserError(
            "the file holds a Swin transformer without relative positions: rayreid builds the first version only"
        )
    seen: dict[str, Any] = {
        "embed_dim": state["patch_embed.proj.weight"].shape[0],
        "depths": [_count(state, f"layers.{i}.blocks.") for i in range(len(tables))],
        "num_heads": [table.shape[1] for table in tables if table is not None],
        "window_size": (math.isqrt(tables[0].shape[0]) + 1) // 2 if tables[0] is not None else 7,
    }
    names = [name for name, own in SWINS.items() if all(list(own[k]) == seen[k] for k in ("depths", "num_heads"))]
    name = names[0] if names else _named(seen["embed_dim"], {name: own["embed_dim"] for name, own in SWINS.items()})
    own = {"window_size": 7, **SWINS[name]}
    spec: dict[str, Any] = {"name": name, "stem": "patchify"}
    spec |= {key: value for key, value in seen.items() if value != _listed(own[key])}
    _mlp_ratio(state, spec, "layers.0.blocks.0.mlp.fc1.weight")
    return Shape(spec)


def _resnet(state: Mapping[str, Tensor]) -> Shape:
    blocks = tuple(_count(state, f"layer{stage}.") for stage in (1, 2, 3, 4))
    if blocks != RESNET50_BLOCKS or "layer1.0.conv3.weight" not in state:
        raise UserError(f"the file holds a ResNet with {blocks} blocks; of ResNets rayreid builds ResNet-50 only")
    return Shape({"name": "resnet50", "stem": "patchify"})


def _named(width: int, widths: Mapping[str, int]) -> str:
    """Return the name with that width, or else with the next smaller one (the smallest, if there is none)."""
    return max(
        widths, key=lambda name: (widths[name] <= width, widths[name] if widths[name] <= width else -widths[name])
    )


def _mlp_ratio(state: Mapping[str, Tensor], spec: dict[str, Any], name: str) -> None:
    if name in state and (ratio := state[name].shape[0] / state[name].shape[1]) != 4:
        spec["mlp_ratio"] = ratio


def _patch(state: Mapping[str, Tensor], stem: str) -> tuple[int, int]:
    weight = state.get("patch_embed.proj.weight")
    if weight is None or weight.dim() != 4:
        raise UserError("the file holds a ViT without the convolution patch_embed.proj: rayreid has no such stem")
    return PATCH_OF_STEM[stem] * weight.shape[2], PATCH_OF_STEM[stem] * weight.shape[3]


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return the number of different next parts of the names below a prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
