"""Backends of tracking: one file each, named by the scheme of its URLs; `mlflow` is for all that MLflow opens."""
