"""Limits and budgets: what a request may cost before it runs, and what it did cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.gateway.money.base import (
    UNKNOWN,
    Budget,
    Hold,
    Pending,
    Period,
    Scope,
    Spending,
    Treasury,
    Unit,
)
from pressroom.gateway.money.periods import labels_of
from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.gateway.money.accounts import Accounts
    from pressroom.gateway.money.amounts import BudgetError, parse_budget, parse_limit, parse_scope
    from pressroom.gateway.money.budgets import Budgets
    from pressroom.gateway.money.leases import Spent
    from pressroom.gateway.money.owner import Owner
    from pressroom.gateway.money.worker import Worker

__all__ = [
    "UNKNOWN",
    "Accounts",
    "Budget",
    "BudgetError",
    "Budgets",
    "Hold",
    "Owner",
    "Pending",
    "Period",
    "Scope",
    "Spending",
    "Spent",
    "Treasury",
    "Unit",
    "Worker",
    "labels_of",
    "parse_budget",
    "parse_limit",
    "parse_scope",
]

# Budgets are in the database, and SQLAlchemy takes 0.13 s to import: loaded when used.
__getattr__ = _lazily(
    __name__,
    {
        "Accounts": "accounts",
        "BudgetError": "amounts",
        "Budgets": "budgets",
        "Owner": "owner",
        "Spent": "leases",
        "Worker": "worker",
        "parse_budget": "amounts",
        "parse_limit": "amounts",
        "parse_scope": "amounts",
    },
)
