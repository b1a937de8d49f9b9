"""The choice of the parameters with weight decay."""

from torch import nn


def split_decay(module: nn.Module) -> tuple[list[str], list[str]]:
    """Return the names of the trainable parameters with and without weight decay, in the module's order.

    Biases and 1-D parameters (scales of norms) have no decay (DINO, `get_params_groups`); class token and position
    embedding have it. Parameters that do not require a gradient are in neither list.
    """
    decayed: list[str] = []
    undecayed: list[str] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            exempt = name.endswith("bias") or parameter.dim() <= 1
            (undecayed if exempt else decayed).append(name)
    return decayed, undecayed
