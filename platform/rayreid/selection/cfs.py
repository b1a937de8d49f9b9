"""The catastrophic forgetting score (CFS): how little fine-tuning on the target moved an image's feature."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from rayreid.errors import UserError


def directions(features: Tensor, keys: Sequence[str], proxy: str) -> Tensor:
    """Return features normalised to length 1.

    Args:
        features: Features (B, D) of any float type.
        keys: Keys of the B images, for the error message.
        proxy: Name of the proxy that computed the features, for the error message.

    Returns:
        float32 (B, D).

    Raises:
        UserError: A feature is zero or not finite, so it has no direction. The message names the keys.
    """
    norms = features.float().norm(dim=1)
    broken = ~(norms.isfinite() & (norms > 0))
    if broken.any():
        names = [keys[row] for row in broken.nonzero().flatten().tolist()]
        shown = ", ".join(map(str, names[:5])) + (", …" if len(names) > 5 else "")
        raise UserError(
            f"the {proxy} proxy gives no finite, non-zero feature for {len(names)} images ({shown}); "
            "check its weights, or score in float32"
        )
    return F.normalize(features.float(), dim=1)


def cfs(source: Tensor, target: Tensor, keys: Sequence[str], names: tuple[str, str] = ("source", "target")) -> Tensor:
    """Return the catastrophic forgetting score c(x) = ⟨θs(x), θt(x)⟩ / (‖θs(x)‖·‖θt(x)‖) (arXiv 2111.12084).

    The score is high where fine-tuning the proxy on the target forgot little about the image, hence where the image
    is close to the target.

    Args:
        source: Features of the source proxy θs, (B, D), of any float type; normalised and multiplied in float32.
        target: Features of the target proxy θt for the same images, (B, D), before BNNeck.
        keys: Keys of the B images, for error messages.
        names: Names of the two proxies, for error messages.

    Returns:
        Scores in [−1, 1], float32 (B,).

    Raises:
        ValueError: The features have different shapes.
        UserError: A feature is zero or not finite, so it has no direction. The message names the keys.
    """
    if source.dim() != 2 or source.shape != target.shape or len(source) != len(keys):
        raise ValueError(
            f"features {tuple(source.shape)} and {tuple(target.shape)} of {len(keys)} images: not two (B, D)"
        )
    both = [directions(features, keys, name) for features, name in zip((source, target), names, strict=True)]
    return (both[0] * both[1]).sum(dim=1).clamp(-1.0, 1.0)
