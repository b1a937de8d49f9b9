"""Inspection of weights files and image stores, and health checks of the cluster."""
