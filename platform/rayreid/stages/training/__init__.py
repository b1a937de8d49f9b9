"""Parts that the training stages share: initial weights, methods, probes, validation and early stopping."""
