"""Fixtures shared by the tests of the stages."""

from known_features import known, worked_here

__all__ = ["known", "worked_here"]
