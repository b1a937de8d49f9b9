"""Cost of a network: the arithmetic of a forward pass and the number of parameters, counted without allocating it."""

from dataclasses import dataclass
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from rayreid.models.backbones import build_backbone


@dataclass(frozen=True)
class Cost:
    """Cost of a network.

    Attributes:
        gflop: Floating-point operations of a forward pass over one image, in 10⁹; a multiplication and an addition
            count as two.
        parameters: Number of parameters.
    """

    gflop: float
    parameters: int


@cache
def forward_cost(
    name: str,
    stem: str,
    img_size: tuple[int, int],
    depth: int | None = None,
    crop: tuple[int, int] | None = None,
    options: tuple[tuple[str, int | float], ...] = (),
) -> Cost:
    """Return the cost of a network (see `build_backbone`) for images of `img_size`, or of another size `crop`.

    Raises:
        UserError: There is no such network.
    """
    with torch.device("meta"):
        network = build_backbone(name, stem, img_size, depth, **dict(options)).eval()
        image = torch.empty(1, 3, *(crop or img_size))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    return Cost(counter.get_total_flops() / 1e9, sum(one.numel() for one in network.parameters()))
