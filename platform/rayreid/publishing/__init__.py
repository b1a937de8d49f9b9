"""Trained models as folders that others can load: weights, configuration for timm, ONNX model and model card."""
