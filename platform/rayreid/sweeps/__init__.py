"""Sweeps: many experiments of one file, run by Ray Tune."""
