"""What a model behind a gateway does of what the protocols promise: checks that run against any deployment.

Each check asks the gateway as a client would. It passes, or is refused (the gateway says with a 400 that the engine of
this model cannot), or fails: the answer is not what the protocol says. Nothing may be ignored in silence, so there is
no fourth way.
"""

from __future__ import annotations

from pressroom.testing.conformance._asking import Door, Failed, Refused
from pressroom.testing.conformance._checks import CHECKS, Check
from pressroom.testing.conformance._running import Outcome, Result, conformance, matrix

__all__ = ["CHECKS", "Check", "Door", "Failed", "Outcome", "Refused", "Result", "conformance", "matrix"]
