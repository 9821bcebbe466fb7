"""One training run from start to end: its folder, its base, its record in MLflow."""
