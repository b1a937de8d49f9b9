"""All of MLflow: runs, their store, what happens while it is away, and reading back what it holds."""
