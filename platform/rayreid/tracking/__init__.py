"""Everything that talks to MLflow: runs, the tracking store, its outages, and reading runs back."""

import os

# MLflow would send what of it is used to its makers, from a thread of its own; it reads this when it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
