"""Formats of weights: one file each, headers only, every number in them distrusted."""
