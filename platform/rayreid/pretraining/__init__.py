"""Self-supervised methods for the training loop."""
