"""One experiment: its graph of artifacts, what is checked before it runs, and running it."""
