"""Nearest neighbours: what re-ranking and clustering share."""
