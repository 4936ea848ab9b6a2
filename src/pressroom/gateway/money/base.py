"""The contract of budgets: reserve the worst case before a request runs, settle what it came to, never overspend.

One owner decides. On the gateway's event loop `reserve` and `settle` are plain calls that wait for nothing; a worker
process holds leases, parts of a budget that the owner has set aside for it, and decides within them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pressroom.gateway.admission import Caller, Refused


class Scope(StrEnum):
    """Whose spending a budget bounds."""

    KEY = "key"
    TEAM = "team"
    DEPLOYMENT = "deployment"
    ALL = "all"


class Unit(StrEnum):
    """What is counted: `usd` in nano-dollars, `tokens` (prompt and answer together)."""

    USD = "usd"
    TOKENS = "tokens"


class Period(StrEnum):
    """After which time a budget begins anew: a day or a month of the calendar in UTC, or never."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """At most `amount` of `unit` in each `period` for `scope` with this `name` ('' for all)."""

    scope: Scope
    name: str
    unit: Unit
    period: Period
    amount: int


@dataclass(frozen=True, slots=True)
class Amount:
    """Tokens and money together, as a request holds and spends both."""

    tokens: int = 0
    nano_usd: int = 0


class Hold(ABC):
    """What is set aside for one request. It is settled once, or expires."""

    #: Set aside at present.
    tokens: int
    nano_usd: int

    @abstractmethod
    def extend(self, *, tokens: int, nano_usd: int) -> Refused | None:
        """Set aside this much in all (not less than now): the request goes on to something dearer."""

    @abstractmethod
    def settle(self, *, tokens: int, nano_usd: int) -> None:
        """It came to this much; the rest is free again. A second call changes nothing."""


class Treasury(ABC):
    """Limits of rate and budgets. `admit` is called once for a request of a client, first of all."""

    @abstractmethod
    def admit(self, caller: Caller, model: str, *, tokens: int, nano_usd: int, request_id: str) -> Hold | Refused:
        """Take one request of the rate, one of what runs at once, and set `tokens` and `nano_usd` (the worst case)
        aside everywhere they count: the key's, its team's, the deployment's, all. All or nothing."""
