"""Which of several routes answers a request: shares, rules by content, retries, fallbacks, copies for comparison."""

from pressroom.gateway.policy.base import Asking, Policy, Start

__all__ = ["Asking", "Policy", "Start"]
