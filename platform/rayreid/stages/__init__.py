"""Stages of an experiment, each a function *config + input artifacts → output artifact*."""
