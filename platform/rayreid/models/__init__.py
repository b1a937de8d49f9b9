"""Networks: stems, backbones, their normalisation layers, and weights files of any origin."""
