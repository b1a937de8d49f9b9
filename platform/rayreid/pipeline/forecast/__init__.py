"""What a run of an experiment file would do, and what it would cost, before anything starts and without writing."""
