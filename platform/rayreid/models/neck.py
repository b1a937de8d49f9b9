"""The neck in a weights file: the layer between a backbone's feature and the one that is compared.

A model that was trained without labels is compared by the output of its BNNeck. In eval mode that is one scale and one
shift per channel, whatever the backbone. They are stored with the backbone's tensors as `neck.scale` and `neck.shift`.
They are used only to compute the model's own features; a new training starts without them.

A model that was trained with labels is compared by the feature before its BNNeck. The neck is stored beside it as
`bnneck.scale` and `bnneck.shift`, for evaluations that ask for the feature after it.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from rayreid.errors import UserError

PREFIX = "neck."
LEFT_OUT = "neck of the model's own features"

UNUSED_PREFIX = "bnneck."
UNUSED = "BNNeck, which only evaluate.feature: after uses"


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


def named(neck: Neck, prefix: str = PREFIX) -> dict[str, Tensor]:
    """Return the neck's tensors under their names in a file."""
    return {prefix + name: value.detach().cpu().contiguous() for name, value in neck.state_dict().items()}


def part_neck(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors without the necks', and the names of the necks' → the reason to leave them out."""
    reasons = {f"{UNUSED_PREFIX}{name}": UNUSED for name in ("scale", "shift")}
    reasons |= {name: LEFT_OUT for name in state if name.startswith(PREFIX)}
    rest = {name: value for name, value in state.items() if name not in reasons}
    return rest, {name: reasons[name] for name in state if name not in rest}


def load_neck(path: Path, after: bool = False) -> nn.Module:
    """Return the neck in a weights file of ours through which the features to compare pass; the identity if none does.

    Args:
        path: The file.
        after: Whether the feature after the BNNeck is wanted also of models that are compared by the one before it.

    Raises:
        UserError: The feature after the BNNeck is wanted, and the file has no neck.
    """
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        for prefix in (PREFIX, UNUSED_PREFIX) if after else (PREFIX,):
            if f"{prefix}scale" in names:
                return Neck(file.get_tensor(f"{prefix}scale"), file.get_tensor(f"{prefix}shift"))
    if after:
        raise UserError(
            f"{path}: evaluate.feature is after, but these weights have no BNNeck; set evaluate.feature=before, or, if "
            "`finetune` of an earlier version made them, delete their folder and run again"
        )
    return nn.Identity()
