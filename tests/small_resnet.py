"""A ResNet of the kind of ResNet-50, small enough for a test."""

from rayreid.models.backbones import ResNet50


class SmallResNet(ResNet50):
    """One block in each stage, and a quarter of the width; in place of `backbones.ResNet50`."""

    blocks = (1, 1, 1, 1)

    def __init__(self, block, layers, **options):
        super().__init__(block, self.blocks, channels=(16, 32, 64, 128), stem_width=16, **options)
