"""Inference with a trained model: features, search, and comparison of evaluations."""
