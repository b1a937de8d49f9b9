"""The catastrophic forgetting score: how little fine-tuning on the target moved an image's feature."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from rayreid.errors import UserError


def directions(features: Tensor, keys: Sequence[str], proxy: str) -> Tensor:
    """Features normalised to length 1.

    Args:
        features: (B, D), of any float type.
        keys: the images' keys, B of them; for the message.
        proxy: which proxy's they are; for the message.

    Returns:
        float32 (B, D).

    Raises:
        UserError: an image whose feature is not finite, or zero: it has no direction. Names the keys.
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
    """Catastrophic forgetting score c(x) = ⟨θs(x), θt(x)⟩ / (‖θs(x)‖·‖θt(x)‖) (arXiv 2111.12084).

    High where fine-tuning the proxy on the target forgot little of the image, hence where the image lies
    close to the target.

    Args:
        source: features of the source proxy, (B, D), of any float type; normalised and multiplied in float32.
        target: features of the target proxy for the same images, (B, D), before BNNeck.
        keys: the images' keys, B of them; for the messages.
        names: of the two proxies; for the messages.

    Returns:
        Scores in [−1, 1], float32 (B,).

    Raises:
        ValueError: features of different shapes.
        UserError: an image whose feature is not finite, or zero: it has no direction. Names the keys.
    """
    if source.dim() != 2 or source.shape != target.shape or len(source) != len(keys):
        raise ValueError(
            f"features {tuple(source.shape)} and {tuple(target.shape)} of {len(keys)} images: not two (B, D)"
        )
    both = [directions(features, keys, name) for features, name in zip((source, target), names, strict=True)]
    return (both[0] * both[1]).sum(dim=1).clamp(-1.0, 1.0)
