"""The ledger: one row a request, written before its client has the answer."""

from pressroom.gateway.ledger.base import Counted, Ledger, Outcome, Row

__all__ = ["Counted", "Ledger", "Outcome", "Row"]
