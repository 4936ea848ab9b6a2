"""Limits and budgets: what a request may cost before it runs, and what it did cost."""

from pressroom.gateway.money.base import Amount, Budget, Hold, Period, Scope, Treasury, Unit

__all__ = ["Amount", "Budget", "Hold", "Period", "Scope", "Treasury", "Unit"]
