"""Execution of work on Ray, and the context in which a stage runs."""
