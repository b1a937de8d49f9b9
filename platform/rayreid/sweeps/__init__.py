"""Many experiments, by Ray Tune."""
