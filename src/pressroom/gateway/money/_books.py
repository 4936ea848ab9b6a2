"""What is counted for whom: accounts with what was spent by label, the pots that bound them, and the lines between."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pressroom.gateway.money._refusals import no_price, over_budget
from pressroom.gateway.money.base import Budget, Hold, Scope, Unit
from pressroom.gateway.money.periods import begins_anew

if TYPE_CHECKING:
    from pressroom.gateway.admission import Limits, Refused
    from pressroom.gateway.money._rates import Limiter
    from pressroom.gateway.money.accounts import Accounts
    from pressroom.gateway.money.base import Pending

# Days and months of one account that are kept in memory; the oldest go first. A clock that is further off begins anew.
_DAYS, _MONTHS = 70, 36
_DAY_LENGTH = len("2026-11-21")


class Account:
    """One key, team or deployment, or all: what was spent, by label, and its budgets."""

    __slots__ = ("budgets", "name", "scope", "spent")

    def __init__(self, scope: Scope, name: str) -> None:
        self.scope = scope
        self.name = name
        self.budgets: tuple[Budget, ...] = ()
        #: Tokens and nano-dollars; without what the lines of `Accounts` have counted since they were last folded.
        self.spent: dict[str, list[int]] = {}

    def add(self, labels: Iterable[str], tokens: int, nano_usd: int) -> None:
        """Count this as spent under these labels."""
        for label in labels:
            both = self.spent.get(label)
            if both is None:
                both = self.spent[label] = [0, 0]
                self._prune(label)
            both[0] += tokens
            both[1] += nano_usd

    def in_period(self, label: str, unit: Unit) -> int:
        """What was spent under a label."""
        both = self.spent.get(label)
        return 0 if both is None else both[unit is Unit.USD]

    def _prune(self, newest: str) -> None:
        alike = [label for label in self.spent if len(label) == len(newest)]
        if len(alike) > (_DAYS if len(newest) == _DAY_LENGTH else _MONTHS):
            oldest = min(alike)
            if oldest != newest:
                del self.spent[oldest]


class Pot:
    """One budget in one period: what of it is `left`, and what running requests have `held` of that."""

    __slots__ = ("budget", "held", "label", "left", "usd")

    def __init__(self, budget: Budget, label: str, left: int) -> None:
        self.budget = budget
        self.label = label
        self.usd = budget.unit is Unit.USD
        self.left = left
        self.held = 0


class Line:
    """One key asking one deployment on one day: where its requests count, and what they came to since the last fold."""

    __slots__ = ("accounts", "day", "key", "model", "nano_usd", "pots", "team", "tokens", "treasury")

    def __init__(
        self, treasury: Accounts, key: str, team: str, model: str, day: int, accounts: tuple[Account, ...]
    ) -> None:
        self.treasury = treasury
        self.key = key
        self.team = team
        self.model = model
        self.day = day
        self.accounts = accounts
        self.pots: tuple[Pot, ...] = ()
        self.tokens = 0
        self.nano_usd = 0

    def refusal(self, pot: Pot, need: int, at: float, has: int) -> Refused:
        """It needs so much more of the pot than the request `has` set aside already."""
        budget = pot.budget
        return over_budget(budget, pot.left, pot.held - has, has + need, begins_anew(budget.period, self.day), at)


class Purse:
    """What the treasury keeps of one key: its limiter where it has limits, and its lines of today by deployment."""

    __slots__ = ("key", "limiter", "limits", "lines", "team", "treasury")

    def __init__(self, treasury: Accounts, key: str, team: str) -> None:
        self.treasury = treasury
        self.key = key
        self.team = team
        self.limiter: Limiter | None = None
        self.limits: Limits | None = None
        self.lines: dict[str, Line] = {}


class Held(Hold):
    """A hold of `Accounts`. `line` is None once it is settled, `slot` (where its expiry is looked for) once it has
    expired, too."""

    __slots__ = ("limiter", "line", "nano_usd", "slot", "tokens")

    def __init__(self, line: Line, limiter: Limiter | None, slot: set[Held], tokens: int, nano_usd: int) -> None:
        self.line: Line | None = line
        self.limiter = limiter
        self.slot: set[Held] | None = slot
        self.tokens = tokens
        self.nano_usd = nano_usd
        slot.add(self)

    @property
    def counts(self) -> bool:
        return self.line is not None and bool(self.line.pots)

    def extend(self, *, tokens: int, nano_usd: int) -> Refused | Pending | None:
        line = self.line
        assert line is not None, "a hold that is settled cannot be extended"
        return line.treasury.extend(self, line, tokens, nano_usd)

    def settle(self, *, tokens: int, nano_usd: int) -> None:
        line = self.line
        if line is None:
            return
        self.line = None
        if tokens < 0:
            tokens = 0
        if nano_usd < 0:
            nano_usd = 0
        slot = self.slot
        if slot is None:
            line.treasury.settle_late(line, tokens, nano_usd)
            return
        slot.discard(self)
        self.slot = None
        line.tokens += tokens
        line.nano_usd += nano_usd
        for pot in line.pots:
            if pot.usd:
                pot.held -= self.nano_usd
                pot.left -= nano_usd
            else:
                pot.held -= self.tokens
                pot.left -= tokens
        if self.limiter is not None:
            self.limiter.give(self.tokens - tokens)
        if tokens > self.tokens or nano_usd > self.nano_usd:
            line.treasury.overruns += 1
        self.tokens = self.nano_usd = 0


def price_missing(line: Line) -> Refused | None:
    """Why a request of unknown cost is refused; None where no budget would have to count it."""
    for pot in line.pots:
        if pot.usd:
            return no_price(pot.budget, line.model)
    return None
