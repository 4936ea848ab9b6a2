"""What tokens cost: prices of vendors and of one's own machines, and what follows from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.cost.base import NANO, PICO_A_TOKEN, Price, PriceError, Tier, usd
from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.cost.machine import (
        MONTH_HOURS,
        BreakEven,
        apportioned,
        best_nano_a_million,
        capacity,
        machine_nano,
        per_million,
    )
    from pressroom.cost.powered import BEAT_S, Powered
    from pressroom.cost.prices import Known, Prices, SetPrice, has_published, names_of_version, today, what_to_do
    from pressroom.cost.repricing import Correction, Repriced, Repricing
    from pressroom.cost.spending import GROUPS, Replayed, Spending, Spent, Work, together

__all__ = [
    "BEAT_S",
    "GROUPS",
    "MONTH_HOURS",
    "NANO",
    "PICO_A_TOKEN",
    "BreakEven",
    "Correction",
    "Known",
    "Powered",
    "Price",
    "PriceError",
    "Prices",
    "Replayed",
    "Repriced",
    "Repricing",
    "SetPrice",
    "Spending",
    "Spent",
    "Tier",
    "Work",
    "apportioned",
    "best_nano_a_million",
    "capacity",
    "has_published",
    "machine_nano",
    "names_of_version",
    "per_million",
    "today",
    "together",
    "usd",
    "what_to_do",
]

# What reads the database: SQLAlchemy takes 0.13 s to import.
__getattr__ = _lazily(
    __name__,
    {
        "BEAT_S": "powered",
        "GROUPS": "spending",
        "MONTH_HOURS": "machine",
        "BreakEven": "machine",
        "Correction": "repricing",
        "Known": "prices",
        "Powered": "powered",
        "Prices": "prices",
        "Replayed": "spending",
        "Repriced": "repricing",
        "Repricing": "repricing",
        "SetPrice": "prices",
        "Spending": "spending",
        "Spent": "spending",
        "Work": "spending",
        "apportioned": "machine",
        "best_nano_a_million": "machine",
        "capacity": "machine",
        "has_published": "prices",
        "machine_nano": "machine",
        "names_of_version": "prices",
        "per_million": "machine",
        "today": "prices",
        "together": "spending",
        "what_to_do": "prices",
    },
)
