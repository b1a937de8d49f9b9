"""Every method with every kind of backbone that it is said to be for, and small networks of these kinds."""

from rayreid.config.method_defaults import PUBLISHED
from rayreid.models import resnet, swin, vit
from small_resnet import SmallResNet

SIZE = (64, 32)
SMALL = {
    "vit": {"name": "vit_tiny", "depth": 2},
    "ics": {"name": "vit_tiny", "depth": 2, "stem": "ics"},
    "swin": {"name": "swin_tiny"},
    "resnet50": {"name": "resnet50"},
}
PAIRS = [
    (method, kind)
    for method, families in PUBLISHED.items()
    for kind, backbone in SMALL.items()
    if backbone["name"].partition("_")[0] in families
]


def shrink(monkeypatch, width: int = 48) -> None:
    """Have `build_backbone` make a ViT, a Swin and a ResNet of a fraction of their size."""
    monkeypatch.setitem(vit.VITS, "vit_tiny", {"embed_dim": width, "depth": 2, "num_heads": 3})
    small = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4)}
    monkeypatch.setitem(swin.SWINS, "swin_tiny", small)
    monkeypatch.setattr(resnet, "ResNet50", SmallResNet)
