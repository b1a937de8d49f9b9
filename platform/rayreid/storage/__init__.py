"""Artifacts on disk, leases for writing them, and journals of training metrics."""
