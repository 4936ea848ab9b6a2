"""What should run, and getting there."""
