"""Artifacts on disk, the leases of who writes them, and the rows that a training leaves in them."""
