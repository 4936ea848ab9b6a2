"""The contract of budgets: reserve the worst case before a request runs, settle what it came to, never overspend.

One owner decides. On the gateway's event loop `admit` and `settle` are plain calls that wait for nothing; a worker
process holds leases, parts of a budget that the owner has set aside for it, and decides within them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pressroom.gateway.admission import Caller, Refused

#: As `nano_usd` of `admit` and `extend`: nobody knows what the request would cost. It is admitted only where no budget
#: in US dollars would have to count it.
UNKNOWN = -1


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
class Spending:
    """What was spent for `scope` with this `name` ('' for all) in the period called `period`: a label of `labels_of`.
    Tokens of prompts and answers together. A row of the table `spending`."""

    scope: str
    name: str
    period: str
    tokens: int
    nano_usd: int


class Hold(ABC):
    """What is set aside for one request. It is settled once, or expires: then nothing is set aside for it any more, and
    settling it counts what it came to."""

    __slots__ = ()

    #: Set aside at present.
    tokens: int
    nano_usd: int

    @property
    @abstractmethod
    def counts(self) -> bool:
        """Whether a budget counts it: then it is written down before the request runs."""

    @abstractmethod
    def extend(self, *, tokens: int, nano_usd: int) -> Refused | Pending | None:
        """Set aside this much in all (less than now changes nothing): the request goes on to something dearer. Refused,
        it holds what it held before. Not to be called once it is settled."""

    @abstractmethod
    def settle(self, *, tokens: int, nano_usd: int) -> None:
        """It came to this much, counted in full also where it is more than was set aside; the rest is free again. A
        second call changes nothing."""


class Pending(ABC):
    """The owner has to be asked first. Only a worker's treasury gives these, and in memory the owner answers at once or
    within a second."""

    __slots__ = ()

    @abstractmethod
    def wait(self, then: Callable[[Hold | Refused], None]) -> None:
        """Call `then` once, on the event loop and never from within this call: with the hold, or with why not. Whoever
        `extend`ed is given the same hold again."""

    @abstractmethod
    def cancel(self) -> None:
        """Nobody waits any more: `then` is not called, and nothing stays set aside for `admit`."""


class Treasury(ABC):
    """Limits of rate and budgets. `admit` is called once for a request of a client, first of all. All of it is used on
    the event loop."""

    @abstractmethod
    def admit(
        self, caller: Caller, model: str, *, tokens: int, nano_usd: int, request_id: str, at: float = 0.0
    ) -> Hold | Refused | Pending:
        """Take one request of the rate, one of what runs at once, and set `tokens` and `nano_usd` (the worst case;
        `UNKNOWN` where there is no price) aside everywhere they count: the key's, its team's, the deployment's, all.
        All or nothing. `at`, in seconds since the epoch, says which day it belongs to: that of its row (0: now)."""

    @abstractmethod
    def renew(self, budgets: Iterable[Budget]) -> None:
        """From now on these are the budgets, and no others. What was spent, and what is set aside, counts for them from
        the start of their periods."""
