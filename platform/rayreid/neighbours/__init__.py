"""Nearest neighbours: the search and encoding that re-ranking and clustering share."""
