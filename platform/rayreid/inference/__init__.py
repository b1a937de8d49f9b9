"""A trained model in use: features, search, comparison of evaluations."""
