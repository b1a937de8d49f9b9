"""Pages and registered models, made from what MLflow holds."""
