"""Export of a backbone to the formats of other projects: timm's and TransReID-SSL's."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from rayreid.errors import UserError
from rayreid.files import replacing, write_atomically
from rayreid.models.backbones import SWINS, VITS, Backbone, ViT
from rayreid.models.vit import DINOV3S, VARIANTS

TIMM_NAMES = {
    "vit_tiny": "vit_tiny_patch16_224",
    "vit_small": "vit_small_patch16_224",
    "vit_base": "vit_base_patch16_224",
    "vit_large": "vit_large_patch16_224",
    "swin_tiny": "swin_tiny_patch4_window7_224",
    "swin_small": "swin_small_patch4_window7_224",
    "swin_base": "swin_base_patch4_window7_224",
    "resnet50": "resnet50",
    **{
        f"vit_{width}_dinov2{tokens}": f"vit_{width}_patch14{mark}_dinov2"
        for width in ("small", "base", "large", "giant")
        for tokens, mark in (("", ""), ("_reg4", "_reg4"))
    },
    **{name: name.replace("_dinov3", "_patch16_dinov3") for name in DINOV3S},
}
STEM_CLASSES = {"conv": "ConvStem", "ics": "ICSStem"}
TRANSREID_WIDTHS = {384: "vit_small", 768: "vit_base"}
TIMM_OPTIONS = ("embed_dim", "num_heads", "patch_size", "mlp_ratio", "qkv_bias", "depths", "window_size")
"""Options of `build_backbone` that timm's functions take under the same name."""

SWIN_FLAGS = {"strict_img_size": False, "always_partition": True}


def write_timm(path: Path, backbone: Backbone) -> list[str]:
    """Write a backbone in the form that `timm.create_model(…).load_state_dict(…, strict=True)` accepts.

    Args:
        path: A file name that ends in `.safetensors` (without a header of ours) or `.pth`.
        backbone: A backbone made by `build_backbone`; its names are those of timm, and its dtypes are kept.

    Returns:
        Lines about the requirements of the file, and about facts that it cannot contain.

    Raises:
        UserError: timm has no such network.
    """
    if backbone.spec["name"] not in TIMM_NAMES or backbone.spec.get("last_stride", 2) != 2:
        raise UserError(f"timm has no network like {backbone.spec['name']} as it is here; choose --to safetensors")
    if path.suffix == ".safetensors":
        # safetensors' own `save_file` makes the file unreadable for all other users
        write_atomically(path, save(_state(backbone)))
    else:
        _write_torch(path, backbone)
    stem = backbone.spec["stem"]
    notes = [f"to load it: {timm_call(backbone.spec)}"]
    if stem in STEM_CLASSES:
        notes.append(
            f"timm has no {stem} stem: `from rayreid.models.stems import {STEM_CLASSES[stem]}` where it is loaded"
        )
    return notes


def timm_call(spec: dict[str, Any]) -> str:
    """Return the call of `timm.create_model` that builds the network of a spec."""
    listed = [f"{key}={value!r}" for key, value in timm_arguments(spec).items()]
    if spec["stem"] in STEM_CLASSES:
        listed.append(f"embed_layer={STEM_CLASSES[spec['stem']]}")
    return f"timm.create_model({TIMM_NAMES[spec['name']]!r}, {', '.join(listed)})"


def timm_arguments(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of `timm.create_model` for the network of a spec, except for its stem."""
    name = spec["name"]
    arguments: dict[str, Any] = {"num_classes": 0}
    if name in DINOV3S:
        arguments["global_pool"] = "token"
    if name != "resnet50":
        arguments["img_size"] = tuple(spec["img_size"])
    own: dict[str, Any] = {**VITS, **VARIANTS, **DINOV3S, **SWINS}.get(name, {})
    if spec.get("depth") not in (None, own.get("depth")):
        arguments["depth"] = spec["depth"]
    arguments |= {key: spec[key] for key in TIMM_OPTIONS if key in spec and spec[key] != own.get(key)}
    if name in SWINS:
        arguments |= SWIN_FLAGS
    return arguments


def write_transreid(path: Path, backbone: Backbone) -> list[str]:
    """Write a ViT in the form that TransReID-SSL's code loads as a pre-trained model.

    The form is the output of the authors' `dino/convert_model_dino.py`: a PyTorch file with only the backbone's
    tensors, without any prefix and without a head. `TransReID.load_param` of `transreid_pytorch`
    (`MODEL.PRETRAIN_CHOICE imagenet`) accepts no other form except DINO's own checkpoint: it looks for bare names. That
    of `cluster-contrast-reid` also strips `module.` and `base.`. Bare names therefore suit both. (`base.*` is the form
    of a whole fine-tuned model, which `build_transformer.load_param` reads for tests, including the neck.)

    Args:
        path: A PyTorch file, by convention `.pth`.
        backbone: A ViT made by `build_backbone`; its dtypes are kept.

    Returns:
        Lines about the requirements of the file, and about facts that it cannot contain.

    Raises:
        UserError: The backbone is not a plain ViT.
    """
    spec = backbone.spec
    if not isinstance(backbone, ViT) or spec["name"] not in VITS:
        raise UserError(
            f"--to transreid writes plain ViTs only, and this is a {spec['name']}; choose --to timm or safetensors"
        )
    _write_torch(path, backbone)
    return _transreid_notes(backbone)


def _transreid_notes(backbone: ViT) -> list[str]:
    height, width = backbone.spec["img_size"]
    notes = []
    if height % width == 0:
        ratio = height // width
        notes.append(f"at other sizes than {height}x{width}: MODEL.PRETRAIN_HW_RATIO {ratio}, or --hw-ratio {ratio}")
    else:
        notes.append(f"only for {height}x{width}: the authors' code resizes grids of whole height-to-width ratios only")
    if backbone.spec["stem"] == "ics":
        notes.append("its ics stem: MODEL.STEM_CONV True, or --conv-stem (there ViT-S only)")
    if backbone.spec["stem"] == "conv":
        notes.append("the authors' code builds the stems patchify and ics only: conv needs a change there")
    if not _published(backbone):
        notes.append("the authors' code builds ViT-S/16 and ViT-B/16 of 12 blocks only: this one needs a change there")
    return notes


def _published(backbone: ViT) -> bool:
    block: Any = backbone.blocks[0]
    return (
        backbone.embed_dim in TRANSREID_WIDTHS
        and block.attn.num_heads == VITS[TRANSREID_WIDTHS[backbone.embed_dim]]["num_heads"]
        and block.mlp.fc1.out_features == 4 * backbone.embed_dim
        and len(backbone.blocks) == 12
        and backbone.patch_embed.patch_size == (16, 16)
    )


def _write_torch(path: Path, backbone: Backbone) -> None:
    with replacing(path) as unfinished:
        torch.save(_state(backbone), unfinished)


def _state(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()}
