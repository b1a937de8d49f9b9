"""The optimisation loop of every method, its schedules, its checkpoints and its gradients' averaging."""
