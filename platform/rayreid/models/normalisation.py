"""Mean and standard deviation per colour channel, for images in [0, 1], with which weights were trained."""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# Formats with known normalisation: that of pre-training, ours and published, and of the published ReID models.
NORMALISED = {
    **dict.fromkeys(("rayreid-state", "transreid-pretraining", "dino", "mocov2", "mocov3", "moby"), IMAGENET),
    **dict.fromkeys(("pass", "solider", "mae", "dinov2", "dinov3", "strong-baseline", "torchreid"), IMAGENET),
    **dict.fromkeys(("reid", "pass-reid", "solider-reid", "cluster-contrast"), HALF),
}
