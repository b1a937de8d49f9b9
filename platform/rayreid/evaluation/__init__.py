"""Evaluation: retrieval metrics by the Market-1501 protocol, and the figures drawn from them."""
