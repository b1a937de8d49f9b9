"""Drawn pedestrians: a dataset that needs no download."""
