"""ResNet-50: timm's class with synchronised batch norm, and with instance norm in half of its channels (IBN-a)."""

from typing import Any

from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from rayreid.errors import UserError
from rayreid.models.interface import Backbone
from rayreid.models.norms import IBN, SyncedBatchNorm
from rayreid.models.options import check_options

RESNETS: dict[str, dict[str, Any]] = {"resnet50": {"last_stride": 2}, "resnet50_ibn": {"last_stride": 1}}
"""The stride of the last stage is ImageNet's 2; published IBN-a networks for re-identification have 1."""

RESNET_OPTIONS = ("last_stride",)
IBN_STAGES = ("layer1", "layer2", "layer3")


class ResNet50(ResNet, Backbone):
    """timm's ResNet-50 with synchronised batch norm; its feature is the mean over the last map."""


def build_resnet(name: str, drop_path: float, overrides: dict[str, Any]) -> ResNet50:
    """Return a ResNet-50 with fresh weights; see `rayreid.models.backbones.build_backbone`."""
    check_options(overrides, RESNET_OPTIONS, name)
    resnet = ResNet50(
        Bottleneck,  # type: ignore[arg-type]  # timm annotates the class as an instance
        (3, 4, 6, 3),
        num_classes=0,
        norm_layer=SyncedBatchNorm,
        drop_path_rate=drop_path,
    )
    stride = {**RESNETS[name], **overrides}["last_stride"]
    if stride not in (1, 2):
        raise UserError(f"backbone last_stride is 1 or 2, not {stride}")
    last: Any = resnet.layer4
    last[0].conv2.stride = last[0].downsample[0].stride = (stride, stride)
    if name == "resnet50_ibn":
        _with_instance_norm(resnet)
    return resnet


def _with_instance_norm(resnet: nn.Module) -> None:
    """Replace the first norm of each block of the first three stages by IBN (IBN-Net, arXiv 1807.09441, IBN-a)."""
    for stage in IBN_STAGES:
        blocks: Any = getattr(resnet, stage)
        for block in blocks:
            block.bn1 = IBN(block.conv1.out_channels)
