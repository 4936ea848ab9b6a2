"""The ledger: one row a request, written before its client has the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.gateway.ledger.base import Counted, Ledger, Opened, Outcome, Row
from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.gateway.ledger._corrections import (
        Corrected,
        Difference,
        correct,
        corrections,
        newest_correction,
    )
    from pressroom.gateway.ledger._entries import Entry, Filter, LedgerState, Rows
    from pressroom.gateway.ledger._export import export
    from pressroom.gateway.ledger._ledger import JournalLedger, open_ledger
    from pressroom.gateway.ledger._spending import spent

__all__ = [
    "Corrected",
    "Counted",
    "Difference",
    "Entry",
    "Filter",
    "JournalLedger",
    "Ledger",
    "LedgerState",
    "Opened",
    "Outcome",
    "Row",
    "Rows",
    "correct",
    "corrections",
    "export",
    "newest_correction",
    "open_ledger",
    "spent",
]

# The tables need SQLAlchemy, which takes 0.13 s to import: loaded when used.
__getattr__ = _lazily(
    __name__,
    {
        "Corrected": "_corrections",
        "Entry": "_entries",
        "Filter": "_entries",
        "JournalLedger": "_ledger",
        "LedgerState": "_entries",
        "Rows": "_entries",
        "Difference": "_corrections",
        "correct": "_corrections",
        "corrections": "_corrections",
        "newest_correction": "_corrections",
        "export": "_export",
        "open_ledger": "_ledger",
        "spent": "_spending",
    },
)
