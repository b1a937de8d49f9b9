"""Which parameters get weight decay."""

from torch import nn


def split_decay(module: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the trainable parameters with and without weight decay, in the module's order.

    Biases and 1-D parameters (norms' scales) are not decayed (DINO, `get_params_groups`); class token and
    position embedding are. Parameters that do not require a gradient stand in neither list.
    """
    decayed: list[str] = []
    undecayed: list[str] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            exempt = name.endswith("bias") or parameter.dim() <= 1
            (undecayed if exempt else decayed).append(name)
    return decayed, undecayed
