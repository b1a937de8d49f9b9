"""Everything that talks to MLflow: runs, the tracking store, its outages, and reading runs back."""
