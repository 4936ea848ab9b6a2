"""The treasury in memory: the one that decides.

What was spent is kept by account (a key, a team, a deployment, all) and label of a period; what requests hold is known
from the holds themselves. All else is derived from these two, and derived anew when a day begins or the budgets
change: the pots, which say of each budget what is left of it, and the lines, which say of each key and deployment which
pots and accounts its requests count in. A request therefore looks up one line, and changes a few whole numbers.

Days are of the wall clock, at admission; expiry and rates go by the monotonic clock alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic_ns, time
from typing import TYPE_CHECKING

from pressroom.gateway.admission import Caller, Limits, Refused
from pressroom.gateway.money._books import Account, Held, Line, Pot, Purse, price_missing
from pressroom.gateway.money._rates import Limiter
from pressroom.gateway.money.base import Budget, Hold, Pending, Scope, Spending, Treasury, Unit
from pressroom.gateway.money.leases import Resource, pot_of
from pressroom.gateway.money.periods import bounds_of_day, day_of, label_of, labels_of_day

if TYPE_CHECKING:
    from pressroom.gateway.ledger import Opened

_S = 10**9
_NO_LIMITS = Limits()
_LOST_HOLD_S = 600.0
# A hold expires between its lifetime and one 128th of it later.
_STEPS = 128


class Accounts(Treasury):
    """Limits and budgets of one process that decides alone, or of the owner.

    `lifetime_s` is how long a hold stays that nobody settles. `clock` and `monotonic` (in nanoseconds) are for tests.
    """

    def __init__(
        self,
        budgets: Iterable[Budget] = (),
        *,
        lifetime_s: float = 3600.0,
        clock: Callable[[], float] = time,
        monotonic: Callable[[], int] = monotonic_ns,
    ) -> None:
        #: Requests that came to more than was set aside for them, and holds that expired.
        self.overruns = 0
        self.expired = 0
        self._clock = clock
        self._monotonic = monotonic
        self._accounts: dict[tuple[Scope, str], Account] = {}
        self._budgets: dict[tuple[Scope, str], list[Budget]] = {}
        self._purses: dict[tuple[str, str], Purse] = {}
        self._limiters: dict[str, Limiter] = {}
        self._pots: dict[tuple[Budget, str], Pot] = {}
        # What workers hold of pots, by what the pots are of: `Owner` keeps it.
        self._leased: dict[Resource, int] = {}
        # Every line that has counted something, or may, since the last fold.
        self._lines: list[Line] = []
        self._lifetime = int(lifetime_s * _S)
        self._step = max(self._lifetime // _STEPS, 1)
        # Holds by when they expire: number n at n steps.
        self._slots: dict[int, set[Held]] = {}
        self._slot: set[Held] = set()
        self._turns_at = 0
        self._from = self._until = 0.0
        self._day = 0
        self.renew(budgets)

    # A request.

    def admit(
        self, caller: Caller, model: str, *, tokens: int, nano_usd: int, request_id: str, at: float = 0.0
    ) -> Hold | Refused | Pending:
        now = self._monotonic()
        if now >= self._turns_at:
            self.expire()
        if not at:
            at = self._clock()
        if not self._from <= at < self._until:
            self._begin_day(at)
        purse: Purse | None = caller.purse
        if purse is None or purse.limits is not caller.limits or purse.treasury is not self:
            purse = self._purse_of(caller)
        line = purse.lines.get(model)
        if line is None:
            line = self._open_line(purse, model)
        limiter = purse.limiter
        if limiter is not None:
            refused = limiter.take(tokens, now)
            if refused is not None:
                return refused
        pots = line.pots
        if nano_usd < 0 or pots:
            if nano_usd < 0:
                refused = price_missing(line)
                if refused is not None:
                    if limiter is not None:
                        limiter.untake(tokens)
                    return refused
                nano_usd = 0
            for pot in pots:
                need = nano_usd if pot.usd else tokens
                if need > pot.left - pot.held and need:
                    if limiter is not None:
                        limiter.untake(tokens)
                    return self._short(line, pot, need, at)
            for pot in pots:
                pot.held += nano_usd if pot.usd else tokens
        return Held(line, limiter, self._slot, tokens, nano_usd)

    def extend(self, hold: Held, line: Line, tokens: int, nano_usd: int) -> Refused | Pending | None:
        """For `Held`: set aside so much in all."""
        if nano_usd < 0:
            refused = price_missing(line)
            if refused is not None:
                return refused
        now = self._monotonic()
        if now >= self._turns_at:
            self.expire()
        more_tokens, more_nano = max(tokens - hold.tokens, 0), max(nano_usd - hold.nano_usd, 0)
        if hold.slot is None:
            line = self._revive(hold)
        for pot in line.pots:
            need = more_nano if pot.usd else more_tokens
            if need > pot.left - pot.held and need:
                return self._short(line, pot, need, self._clock(), hold.nano_usd if pot.usd else hold.tokens)
        limiter = hold.limiter
        if limiter is not None and more_tokens:
            refused = limiter.take_tokens(more_tokens, now)
            if refused is not None:
                return refused
        for pot in line.pots:
            pot.held += more_nano if pot.usd else more_tokens
        hold.tokens += more_tokens
        hold.nano_usd += more_nano
        return None

    def settle_late(self, line: Line, tokens: int, nano_usd: int) -> None:
        """For `Held`: one that had expired came to so much. Its line may be of no use any more."""
        fresh = self._line(line.key, line.team, line.model, line.day)
        fresh.tokens += tokens
        fresh.nano_usd += nano_usd
        for pot in fresh.pots:
            pot.left -= nano_usd if pot.usd else tokens
        if tokens or nano_usd:
            self.overruns += 1

    def adjust(self, key: str, team: str, model: str, *, at: float, nano_usd: int) -> None:
        """What was spent at a moment turned out to be so much more, or less where it is negative."""
        self.spend(key, team, model, day_of(at), tokens=0, nano_usd=nano_usd)

    # What is set from outside.

    def renew(self, budgets: Iterable[Budget]) -> None:
        found: dict[tuple[Scope, str], list[Budget]] = {}
        for budget in budgets:
            found.setdefault((budget.scope, budget.name), []).append(budget)
        self._budgets = found
        for owner, account in self._accounts.items():
            account.budgets = tuple(found.get(owner, ()))
        self._derive()

    def load(self, spending: Iterable[Spending]) -> None:
        """At the start: what was spent before, as the table `spending` has it. What was known under these labels is
        forgotten."""
        self._fold()
        scopes = set(Scope)
        for row in spending:
            if row.scope in scopes and (row.name or row.scope == Scope.ALL):
                account = self._account(Scope(row.scope), row.name)
                account.spent.pop(row.period, None)
                account.add((row.period,), row.tokens, row.nano_usd)
        self._derive()

    def hold_until(
        self, key: str, team: str, model: str, *, tokens: int, nano_usd: int, at: float, seconds: float
    ) -> Hold:
        """Set this aside without asking whether it fits, for at most `seconds`: a request that was open when a process
        ended, and that may still cost something. `at` is when it was admitted."""
        self.expire()
        line = self._line(key, team, model, day_of(at))
        number = -(-(self._monotonic() + int(max(seconds, 0.0) * _S)) // self._step)
        hold = Held(line, None, self._slots.setdefault(number, set()), max(tokens, 0), max(nano_usd, 0))
        _hold(hold, 1)
        return hold

    def hold_lost(self, lost: Iterable[Opened]) -> None:
        """Set aside what was held for requests that were lost with their process, for ten minutes from when they began:
        nobody knows what they came to, and a vendor may still work."""
        for one in lost:
            seconds = min(_LOST_HOLD_S - (self._clock() - one.at), _LOST_HOLD_S)  # the clock may have been put back
            if seconds > 0:
                self.hold_until(
                    one.key, one.team, one.model, tokens=one.tokens, nano_usd=one.nano_usd, at=one.at, seconds=seconds
                )

    def expire(self) -> int:
        """Let holds go whose time is over; how many these were. Done with requests by itself, at most every 128th part
        of the lifetime; worth a call where none come."""
        now = self._monotonic()
        number = now // self._step
        gone = 0
        for due in [due for due in self._slots if due <= number]:
            for hold in self._slots.pop(due):
                _hold(hold, -1)
                if hold.limiter is not None:
                    hold.limiter.leave()
                    hold.limiter = None
                hold.slot = None
                hold.tokens = hold.nano_usd = 0
                gone += 1
        self.expired += gone
        self._slot = self._slots.setdefault((now + self._lifetime) // self._step + 1, set())
        self._turns_at = (number + 1) * self._step
        return gone

    # For the owner of leases.

    def pot(self, resource: Resource) -> Pot | None:
        """The pot of this budget and label; None where there is no such budget any more."""
        scope, name, unit, period, label = resource[1:]
        account = self._account(Scope(scope), name)
        for budget in account.budgets:
            if budget.unit == unit and budget.period == period:
                found = self._pots.get((budget, label))
                if found is None:
                    found = self._pots[budget, label] = self._new_pot(account, budget, label)
                return found
        return None

    def lease(self, resource: Resource, amount: int) -> None:
        """Workers hold so much more of this pot (below 0: less)."""
        pot = self.pot(resource)
        leased = self._leased.get(resource, 0) + amount
        if leased:
            self._leased[resource] = leased
        else:
            self._leased.pop(resource, None)
        if pot is not None:
            pot.held += amount

    def spend(self, key: str, team: str, model: str, day: int, *, tokens: int, nano_usd: int) -> None:
        """Somebody else admitted this, and it came to so much."""
        line = self._line(key, team, model, day)
        line.tokens, line.nano_usd = tokens, nano_usd
        for pot in line.pots:
            pot.left -= nano_usd if pot.usd else tokens
        # Lines are many here and each is used once.
        self._fold_line(self._lines.pop())

    def limiter_of(self, key: str, limits: Limits | None = None) -> Limiter:
        """The limiter of a key, which has these limits now (None: those it had)."""
        limiter = self._limiters.get(key)
        if limiter is None:
            limiter = self._limiters[key] = self._new_limiter(key)
        if limits is not None:
            limiter.set(limits, self._monotonic())
        return limiter

    # What one may ask.

    def spent(self, scope: Scope, name: str, label: str, unit: Unit) -> int:
        """What was spent under a label, up to now."""
        self._fold()
        account = self._accounts.get((scope, name))
        return 0 if account is None else account.in_period(label, unit)

    def held(self, scope: Scope, name: str, unit: Unit) -> int:
        """What running requests hold, whatever their day."""
        return sum(
            hold.nano_usd if unit is Unit.USD else hold.tokens
            for hold in self.open()
            if hold.line is not None and any((a.scope, a.name) == (scope, name) for a in hold.line.accounts)
        )

    @property
    def today(self) -> int:
        """The day of the last request, since 1970-01-01."""
        return self._day

    def open(self) -> list[Held]:
        """The holds that are neither settled nor expired."""
        return [hold for slot in self._slots.values() for hold in slot]

    def pots(self) -> list[Pot]:
        """The budgets that were asked for since the day began, in their periods."""
        return list(self._pots.values())

    def running(self, key: str) -> int:
        """Requests of a key with limits that run."""
        limiter = self._limiters.get(key)
        return 0 if limiter is None else limiter.running

    # How it is kept.

    def _purse_of(self, caller: Caller) -> Purse:
        """The purse of a caller that was not seen yet, or has other limits now: one key may be several objects, one
        after the other."""
        purse = self._purses.get((caller.key, caller.team))
        if purse is None:
            purse = self._purses[caller.key, caller.team] = Purse(self, caller.key, caller.team)
        if caller.limits != _NO_LIMITS:
            purse.limiter = self.limiter_of(caller.key, caller.limits)
        else:
            purse.limiter = None
        purse.limits = caller.limits
        caller.purse = purse
        return purse

    def _new_limiter(self, key: str) -> Limiter:
        return Limiter(key)

    def _open_line(self, purse: Purse, model: str) -> Line:
        line = purse.lines[model] = self._line(purse.key, purse.team, model, self._day)
        return line

    def _line(self, key: str, team: str, model: str, day: int) -> Line:
        """A new line, with the pots there are."""
        owners = [(Scope.KEY, key), (Scope.TEAM, team), (Scope.DEPLOYMENT, model)]
        accounts = [self._account(scope, name) for scope, name in owners if name]
        line = Line(self, key, team, model, day, (*accounts, self._account(Scope.ALL, "")))
        self._lines.append(line)
        line.pots = self._pots_of(line)
        return line

    def _account(self, scope: Scope, name: str) -> Account:
        account = self._accounts.get((scope, name))
        if account is None:
            account = self._accounts[scope, name] = Account(scope, name)
            account.budgets = tuple(self._budgets.get((scope, name), ()))
        return account

    def _pots_of(self, line: Line) -> tuple[Pot, ...]:
        pots = []
        for account in line.accounts:
            for budget in account.budgets:
                label = label_of(budget.period, line.day)
                pot = self._pots.get((budget, label))
                if pot is None:
                    pot = self._pots[budget, label] = self._new_pot(account, budget, label)
                pots.append(pot)
        return tuple(pots)

    def _short(self, line: Line, pot: Pot, need: int, at: float, has: int = 0) -> Refused:
        """A pot has not enough for so much more than a request `has`: why it is refused."""
        return line.refusal(pot, need, at, has)

    def _new_pot(self, account: Account, budget: Budget, label: str) -> Pot:
        # Every line has all of its pots: what lines have counted and is not folded cannot be for this one.
        pot = Pot(budget, label, budget.amount - account.in_period(label, budget.unit))
        pot.held = self._leased.get(pot_of(budget, label), 0)
        return pot

    def _fold(self) -> None:
        """Bring what the lines have counted to the accounts."""
        for line in self._lines:
            if line.tokens or line.nano_usd:
                self._fold_line(line)
                line.tokens = line.nano_usd = 0

    def _fold_line(self, line: Line) -> None:
        labels = labels_of_day(line.day)
        for account in line.accounts:
            account.add(labels, line.tokens, line.nano_usd)

    def _derive(self) -> None:
        """Make lines and pots anew, from what was spent and what is held."""
        self._fold()
        for purse in self._purses.values():
            purse.lines.clear()
        holds = self.open()
        self._lines = list({id(hold.line): hold.line for hold in holds if hold.line is not None}.values())
        self._pots = {}
        for line in self._lines:
            line.pots = self._pots_of(line)
        for hold in holds:
            _hold(hold, 1)

    def _begin_day(self, at: float) -> None:
        self._day = day_of(at)
        self._from, self._until = bounds_of_day(self._day)
        self._derive()

    def _revive(self, hold: Held) -> Line:
        """It had expired and goes on: hold again, nothing yet."""
        assert hold.line is not None
        hold.line = self._line(hold.line.key, hold.line.team, hold.line.model, hold.line.day)
        hold.slot = self._slot
        hold.slot.add(hold)
        return hold.line


def _hold(hold: Held, sign: int) -> None:
    assert hold.line is not None
    for pot in hold.line.pots:
        pot.held += sign * (hold.nano_usd if pot.usd else hold.tokens)
