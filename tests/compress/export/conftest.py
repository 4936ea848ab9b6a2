"""The real model for slow tests."""

from tests.compress.weights.conftest import smollm2

__all__ = ["smollm2"]
