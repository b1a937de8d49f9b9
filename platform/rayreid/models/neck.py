"""The neck in a weights file: the layer between a backbone's feature and the one that is compared.

A model that was trained without labels is compared by the output of its BNNeck. In eval mode that is one scale and one
shift per channel, whatever the backbone. They are stored with the backbone's tensors as `neck.scale` and `neck.shift`.
They are used only to compute the model's own features; a new training starts without them.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

PREFIX = "neck."
LEFT_OUT = "neck of the model's own features"


class Neck(nn.Module):
    """A neck that maps features (B, D) to x · scale + shift.

    Args:
        scale: (D,).
        shift: (D,).
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor):
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, features: Tensor) -> Tensor:
        """Return features (B, D) after the neck, (B, D)."""
        return features * self.scale + self.shift


def named(neck: Neck) -> dict[str, Tensor]:
    """Return the neck's tensors under their names in a file."""
    return {PREFIX + name: value.detach().cpu().contiguous() for name, value in neck.state_dict().items()}


def part_neck(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors without the neck's, and the names of the neck's → the reason to leave them out."""
    rest = {name: value for name, value in state.items() if not name.startswith(PREFIX)}
    return rest, dict.fromkeys((name for name in state if name not in rest), LEFT_OUT)


def load_neck(path: Path) -> nn.Module:
    """Return the neck in a weights file of ours; the identity if it has none."""
    with safe_open(path, framework="pt") as file:
        if not any(name.startswith(PREFIX) for name in file.keys()):  # noqa: SIM118 (not a dict)
            return nn.Identity()
        return Neck(file.get_tensor(f"{PREFIX}scale"), file.get_tensor(f"{PREFIX}shift"))
