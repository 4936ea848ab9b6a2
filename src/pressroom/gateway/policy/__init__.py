"""Which of several routes answers a request: shares, rules by content, retries, fallbacks, copies for comparison."""

from pressroom.gateway.policy._rules import Detectors
from pressroom.gateway.policy.base import Asking, Policy, Start
from pressroom.gateway.policy.steering import Steering, Steerings

__all__ = ["Asking", "Detectors", "Policy", "Start", "Steering", "Steerings"]
