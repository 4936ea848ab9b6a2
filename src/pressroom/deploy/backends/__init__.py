"""Where deployments run: one file a kind of cluster."""
