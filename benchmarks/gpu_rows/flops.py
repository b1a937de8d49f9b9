"""Floating-point operations of the work (docs/performance.md, "What bounds it"), as rates and shares of the peak."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gpu_rows.ceilings import matrix_peak
from gpu_rows.part import Values


def of_forward(backbone: Any, size: tuple[int, int]) -> int:
    """Operations of a ViT's forward pass over one crop, with every token in every block.

    With D the width, N the number of tokens and L that of the blocks: 2N (12 D² + 2 N D) L, and the stem's
    convolutions, each two operations for a weight and a place.
    """
    D, L = backbone.embed_dim, len(backbone.blocks)
    (height, width), stem = size, 0
    for layer in backbone.patch_embed.modules():
        if isinstance(layer, nn.Conv2d):
            height, width = height // layer.stride[0], width // layer.stride[1]
            stem += 2 * layer.weight.numel() * height * width
    N = height * width + 1
    return 2 * N * (12 * D**2 + 2 * N * D) * L + stem


def of_step(method: Any, size: tuple[int, int], local_size: tuple[int, int], local_crops: int) -> int:
    """Nominal operations of a DINO step per image.

    The student's forward pass over all crops counts three times (forward, and twice as much backward), the teacher's
    over the two global crops once.
    """
    head = 2 * sum(
        parameter.numel()
        for name, parameter in method.student.head.named_parameters()
        if parameter.dim() == 2 and not name.endswith("weight_g")
    )
    backbone = method.student.backbone
    large, small = of_forward(backbone, size) + head, of_forward(backbone, local_size) + head
    return 3 * (2 * large + local_crops * small) + 2 * large


def executed(work: Callable[[], object]) -> int:
    """Operations of the products, convolutions and attention kernels that `work` executes, which must not be compiled.

    The counter does not see into compiled code. That code executes the same products.
    """
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def rates(kind: str, operations: float, seconds: float, device: str) -> Values:
    """TFLOP/s, and their share of the card's peak of bfloat16 products."""
    rate = operations / seconds / 1e12
    return {f"{kind}_TFLOPs": rate, f"{kind}_share": rate / matrix_peak(device)}
