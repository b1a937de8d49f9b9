"""The optimisation loop of all methods, with its schedules, checkpoints and gradient averaging."""
