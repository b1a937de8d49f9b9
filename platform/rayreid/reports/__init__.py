"""Report pages and registered models, made from the runs in MLflow."""
