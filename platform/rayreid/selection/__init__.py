"""Which images of the pool to pre-train on: the score, the strategies, the cut."""
