"""What runs a model: the contract, the backends, the supervisor that keeps one alive, and the measurements."""
