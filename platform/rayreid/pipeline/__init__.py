"""One experiment: its graph of artifacts, the checks before it runs, and its execution."""
