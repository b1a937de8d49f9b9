"""The configuration with which timm loads a folder of a model: `timm.create_model("local-dir:FOLDER")`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_pretrained_cfg

from rayreid.errors import UserError
from rayreid.models.backbones import Backbone
from rayreid.models.conversion import TIMM_NAMES, TIMM_OPTIONS, timm_arguments

CONFIG = "config.json"
TOLERANCE = 1e-4  # standard deviations of the features
_COMMON = ("name", "stem", "img_size", "depth", "drop_path", "last_stride")


def timm_config(backbone: Backbone, header: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the content of `config.json` in the layout of model hubs; None if timm does not have the network.

    Source of the layout: `timm.models._hub.save_config_for_hf` and `_parse_model_cfg` of timm 1.0.

    Args:
        backbone: The network.
        header: The header of the weights file: `mean`, `std` and perhaps `interpolation`.
    """
    if lacks(backbone):
        return None
    spec = backbone.spec
    arguments = {key: value for key, value in timm_arguments(spec).items() if key != "num_classes"}
    name = TIMM_NAMES[spec["name"]]
    known = get_pretrained_cfg(name)
    layers = {key: getattr(known, key) for key in ("first_conv", "classifier") if known and getattr(known, key)}
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": backbone.num_features,
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "rayreid",
            "custom_load": False,
            "input_size": [3, *spec["img_size"]],
            "fixed_input_size": "img_size" in arguments,
            "interpolation": header.get("interpolation", "bilinear"),
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": list(header["mean"]),
            "std": list(header["std"]),
            "num_classes": 0,
            **layers,
        },
    }


def lacks(backbone: Backbone) -> str:
    """Return what of a network timm does not have, in words; empty if it has all of it."""
    spec = backbone.spec
    if spec["name"] not in TIMM_NAMES or spec.get("last_stride", 2) != 2:
        return f"the network {spec['name']} as rayreid builds it"
    if spec["stem"] != "patchify":
        return f"the stem {spec['stem']}"
    return ", ".join(key for key in spec if key not in (*_COMMON, *TIMM_OPTIONS))


@torch.no_grad()
def check_timm(folder: Path, backbone: Backbone) -> float:
    """Load a folder with timm, and return the largest difference of its features, in their standard deviations.

    Raises:
        UserError: The difference exceeds `TOLERANCE`.
    """
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, *backbone.spec["img_size"], generator=generator)
    expected = backbone.eval()(images)
    difference = float((loaded(images) - expected).abs().max() / expected.std())
    if not difference <= TOLERANCE:  # also if it is not a number
        raise UserError(
            f"not published: timm {timm.__version__} gives features of this model that differ by {difference:.1e} "
            f"standard deviations, more than {TOLERANCE:.0e}; try another version of timm"
        )
    return difference
