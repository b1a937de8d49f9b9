"""How work runs on Ray, and what a stage finds where it runs."""
