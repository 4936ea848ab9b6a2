"""A worker's treasury: decides within the leases that the owner has given it, and asks before it runs out.

It is `Accounts` whose pots have, instead of what is left of a budget, what the owner has granted of it. What fits is
admitted at once, as fast as by the owner; what does not is `Pending` until the owner has answered. While the owner is
gone it goes on within its leases, until these end; callers without limits and budgets it admits all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic_ns, time

from pressroom.gateway.admission import Caller, Refused
from pressroom.gateway.money._books import Account, Held, Line, Pot
from pressroom.gateway.money._leased import SHORT, Asked, LeasedLimiter
from pressroom.gateway.money._rates import Limiter
from pressroom.gateway.money._refusals import owner_gone
from pressroom.gateway.money.accounts import Accounts
from pressroom.gateway.money.base import Budget, Hold, Pending, Scope
from pressroom.gateway.money.leases import (
    DAYS_KEPT,
    Answer,
    Ask,
    FromOwner,
    FromWorker,
    Hello,
    LineKey,
    Need,
    Recall,
    Report,
    Resource,
    Seen,
    Spent,
    pot_of,
)
from pressroom.gateway.money.periods import label_of
from pressroom.gateway.problems import Problem

_S = 10**9
# What a request waits for the owner's answer at most.
_PATIENCE_NS = 2 * _S
# A lease that was not touched for so many beats is given back.
_IDLE_BEATS = 4
# The first lease of a resource is for so many requests like the one that needs it; it doubles while it is too small.
_FIRST = 4
_LARGEST = 64


class Worker(Accounts):
    """The treasury of one worker process. `session` is unique to the process and names it in the ledger, too.

    A transport calls `opened` once it is connected to the owner, `receive` with each message, in order, `closed` at the
    end of the connection, and `beat` every `beat_s` in any case. Before the owner has first said which budgets there
    are, nothing is admitted (`known` is False).
    """

    beat_s = 0.5

    def __init__(
        self,
        session: str,
        *,
        pid: int = 0,
        lifetime_s: float = 3600.0,
        clock: Callable[[], float] = time,
        monotonic: Callable[[], int] = monotonic_ns,
    ) -> None:
        self.session = session
        self.pid = pid
        self.known = False
        self._send: Callable[[FromWorker], None] | None = None
        # Of pots: what is granted of those that no request has needed since the day began, and the others.
        self._stock: dict[Resource, int] = {}
        self._leased_pots: dict[Resource, Pot] = {}
        # What the owner was told last, and what it has not been told yet.
        self._declared: dict[Resource, int] = {}
        self._sums: dict[LineKey, tuple[int, int]] = {}
        self._untold: set[LineKey] = set()
        self._returned: dict[Resource, int] = {}
        self._waiting: dict[int, Asked] = {}
        self._numbers = 0
        self._grant = 0
        self._sent: dict[int, int] = {}
        self._hello_at = 0
        self._lease_ns = 0
        self._valid_until = 0
        self._lapsed = True
        # How many requests' worth is asked for of a resource, and the size of the last one.
        self._chunks: dict[Resource, tuple[int, int]] = {}
        # At the last beat: how much there was, how much of it in use, and for how many beats it had been so; and what
        # was granted since.
        self._notes: dict[Resource, tuple[int, int, int]] = {}
        self._credited: dict[Resource, int] = {}
        self._covering: dict[Resource, int] = {}
        super().__init__((), lifetime_s=lifetime_s, clock=clock, monotonic=monotonic)

    # A request.

    def admit(
        self, caller: Caller, model: str, *, tokens: int, nano_usd: int, request_id: str, at: float = 0.0
    ) -> Hold | Refused | Pending:
        if not self.known:
            return owner_gone()
        found = super().admit(caller, model, tokens=tokens, nano_usd=nano_usd, request_id=request_id, at=at)
        if found is not SHORT:
            return found
        if self._send is None:
            return owner_gone()
        asked = Asked(self, caller, model, tokens, nano_usd, request_id, at or self._clock())
        self._ask_for(asked, self._monotonic() + _PATIENCE_NS)
        return asked

    def extend(self, hold: Held, line: Line, tokens: int, nano_usd: int) -> Refused | Pending | None:
        found = super().extend(hold, line, tokens, nano_usd)
        if found is not SHORT:
            return found
        if self._send is None:
            return owner_gone()
        asked = Asked(self, None, line.model, tokens, nano_usd, "", self._clock())
        asked.hold = hold
        self._ask_for(asked, self._monotonic() + _PATIENCE_NS)
        return asked

    def forget(self, asked: Asked) -> None:
        """For `Asked`: nobody waits for it any more."""
        self._waiting.pop(asked.number, None)

    def expire(self) -> int:
        gone = super().expire()
        if not self._lapsed:
            if self._monotonic() >= self._valid_until:
                self._lapse()
            else:
                self._turns_at = min(self._turns_at, self._valid_until)
        return gone

    def _short(self, line: Line, pot: Pot, need: int, at: float, has: int = 0) -> Refused:
        return SHORT

    # Asking the owner.

    def _ask_for(self, asked: Asked, deadline: int) -> None:
        needs, limits = self._needs(asked)
        self._numbers += 1
        asked.number, asked.deadline = self._numbers, deadline
        self._waiting[asked.number] = asked
        self._tell(Ask(asked.number, tuple(needs), limits, at=asked.at))

    def _needs(self, asked: Asked) -> tuple[list[Need], tuple[int | None, int | None, int | None]]:
        """What is missing for a request. What is there is counted on by whoever waits already."""
        needs: list[Need] = []
        tokens, nano_usd, hold = asked.tokens, max(asked.nano_usd, 0), asked.hold
        if hold is not None and hold.line is not None:
            line, found = hold.line, hold.limiter
            tokens, nano_usd = max(tokens - hold.tokens, 0), max(nano_usd - hold.nano_usd, 0)
        else:
            assert asked.caller is not None
            line, found = asked.caller.purse.lines[asked.model], asked.caller.purse.limiter
        alone = not self._waiting

        def need(resource: Resource, whole: int, there: int) -> None:
            missing = whole - (there if alone else min(there, 0))
            if whole and missing > 0:
                times, _ = self._chunks.get(resource, (_FIRST // 2, 0))
                times = min(times * 2, _LARGEST)
                self._chunks[resource] = (times, whole)
                needs.append((resource, missing, max(missing, whole * times), whole))

        for pot in line.pots:
            need(pot_of(pot.budget, pot.label), nano_usd if pot.usd else tokens, pot.left - pot.held)
        if not isinstance(found, LeasedLimiter):
            return needs, (None, None, None)
        limits = found.limits
        if limits.tokens_per_minute is not None:
            need(("tokens", found.key), tokens, found.tokens_left)
        if hold is None:
            if limits.requests_per_minute is not None:
                need(("requests", found.key), 1, found.requests_left)
            if limits.parallel is not None:
                need(("parallel", found.key), 1, found.granted - found.running)
        return needs, (limits.requests_per_minute, limits.tokens_per_minute, limits.parallel)

    def _answered(self, answer: Answer) -> None:
        if answer.grant:
            self._grant = answer.grant
        for resource, amount in answer.granted:
            self._credit(resource, amount)
        for resource, number in list(self._covering.items()):
            if number == answer.number:
                del self._covering[resource]
        asked = self._waiting.pop(answer.number, None)
        if asked is None:
            return
        if answer.refusal is not None:
            said = answer.refusal
            problem = Problem(said.status, said.message, said.type, None, said.code, said.retry_after_s)
            self._done(asked, Refused(problem, said.short))
            return
        found: Hold | Refused | Pending | None
        hold = asked.hold
        if hold is None:
            assert asked.caller is not None
            found = super().admit(
                asked.caller,
                asked.model,
                tokens=asked.tokens,
                nano_usd=asked.nano_usd,
                request_id=asked.request_id,
                at=asked.at,
            )
        elif hold.line is None:
            found = hold  # it was settled meanwhile
        else:
            found = super().extend(hold, hold.line, asked.tokens, asked.nano_usd) or hold
        if found is not SHORT:
            assert isinstance(found, Hold | Refused)
            self._done(asked, found)
        elif self._monotonic() < asked.deadline and self._send is not None:
            self._ask_for(asked, asked.deadline)  # somebody else was faster
        else:
            self._done(asked, owner_gone())

    def _done(self, asked: Asked, found: Hold | Refused) -> None:
        then, asked.then = asked.then, None
        if then is not None:
            then(found)
        elif isinstance(found, Hold) and asked.hold is None:
            found.settle(tokens=0, nano_usd=0)

    def _credit(self, resource: Resource, amount: int) -> None:
        # As the owner sees it, until it is told otherwise.
        self._declared[resource] = self._declared.get(resource, 0) + amount
        self._credited[resource] = self._credited.get(resource, 0) + amount
        if resource[0] == "pot":
            pot = self._leased_pots.get(resource)
            if pot is not None:
                pot.left += amount
            elif self._current(resource):
                self._stock[resource] = self._stock.get(resource, 0) + amount
            return
        limiter = self.limiter_of(resource[1])
        assert isinstance(limiter, LeasedLimiter)
        if resource[0] == "parallel":
            limiter.granted += amount
        elif resource[0] == "requests":
            limiter.requests_left += amount
        else:
            limiter.tokens_left += amount

    # The connection.

    def opened(self, send: Callable[[FromWorker], None]) -> None:
        """Connected: `send` takes messages to the owner and delivers them later, in order."""
        self._fold()
        self._send = send
        self._grant = 0
        self._sent.clear()
        self._covering.clear()
        self._returned.clear()
        self._untold.clear()
        self._declared = self._balances()
        self._hello_at = self._monotonic()
        send(Hello(self.session, self.pid, self._spent(self._sums), tuple(self._declared.items())))

    def closed(self) -> None:
        """The owner is gone: go on with what is here, and let nobody wait."""
        self._send = None
        waiting, self._waiting = self._waiting, {}
        for asked in waiting.values():
            self._done(asked, owner_gone())

    def receive(self, message: FromOwner) -> None:
        """A message of the owner."""
        if isinstance(message, Answer):
            self._answered(message)
        elif isinstance(message, Seen):
            self._renewed(self._sent.pop(message.number, 0))
        elif isinstance(message, Recall):
            for resource in message.resources:
                self._give_back(resource)
            self._report(message.number)
        else:
            self._lease_ns = int(message.lease_s * _S)
            self.known = True
            self._renewed(self._hello_at)
            self.renew(message.budgets)
            self._cover()

    def beat(self) -> None:
        """Report, which keeps the leases; give back what is idle; ask for more of what runs low."""
        now = self._monotonic()
        self.expire()
        for asked in [asked for asked in self._waiting.values() if now >= asked.deadline]:
            del self._waiting[asked.number]
            self._done(asked, owner_gone())
        if self._send is None:
            return
        self._look_for_idle()
        self._report(0)
        self._cover()
        self._stock_up()

    def _tell(self, message: FromWorker) -> None:
        assert self._send is not None
        self._send(message)

    def _renewed(self, sent: int) -> None:
        """The owner has seen what was sent then."""
        self._valid_until = max(self._valid_until, sent + self._lease_ns)
        self._lapsed = self._monotonic() >= self._valid_until
        if not self._lapsed:
            self._turns_at = min(self._turns_at, self._valid_until)
        for number in [number for number, at in self._sent.items() if at <= sent]:
            del self._sent[number]

    def _lapse(self) -> None:
        """The leases have ended: what is not in use must not be used any more."""
        self._lapsed = True
        for resource in self._balances():
            self._give_back(resource)
        self._returned.clear()

    def _report(self, recalled: int) -> None:
        self._fold()
        self._numbers += 1
        now = self._balances()
        changed = {resource: amount for resource, amount in now.items() if self._declared.get(resource) != amount}
        changed |= {resource: 0 for resource in self._declared if resource not in now}
        self._declared = now
        lines, self._untold = self._spent(self._untold), set()
        returned, self._returned = tuple(self._returned.items()), {}
        self._sent[self._numbers] = self._monotonic()
        self._tell(Report(self._numbers, self._grant, recalled, lines, tuple(changed.items()), returned))

    def _spent(self, lines: Iterable[LineKey]) -> tuple[Spent, ...]:
        return tuple(Spent(line, *self._sums[line]) for line in lines if line in self._sums)

    # What it has.

    def _balances(self) -> dict[Resource, int]:
        """Granted and not spent, of everything; without what is nothing."""
        found = {resource: pot.left for resource, pot in self._leased_pots.items()} | self._stock
        for key, limiter in self._limiters.items():
            assert isinstance(limiter, LeasedLimiter)
            found["requests", key] = limiter.requests_left
            found["tokens", key] = limiter.tokens_left
            found["parallel", key] = limiter.granted
        return {resource: amount for resource, amount in found.items() if amount}

    def _in_use(self, resource: Resource) -> int:
        if resource[0] == "pot":
            pot = self._leased_pots.get(resource)
            return 0 if pot is None else pot.held
        return self._limiters[resource[1]].running if resource[0] == "parallel" else 0

    def _give_back(self, resource: Resource) -> None:
        """Whatever of it is not in use."""
        if resource[0] == "pot":
            self._stock.pop(resource, None)
            pot = self._leased_pots.get(resource)
            if pot is not None:
                pot.left = min(pot.left, pot.held)
            return
        limiter = self._limiters.get(resource[1])
        if not isinstance(limiter, LeasedLimiter):
            return
        if resource[0] == "parallel":
            limiter.granted = min(limiter.granted, limiter.running)
            return
        left = max(limiter.requests_left if resource[0] == "requests" else limiter.tokens_left, 0)
        self._returned[resource] = self._returned.get(resource, 0) + left
        if resource[0] == "requests":
            limiter.requests_left -= left
        else:
            limiter.tokens_left -= left

    def _look_for_idle(self) -> None:
        """Note what was used since the last beat, and give back what was not used for some."""
        now = self._balances()
        notes: dict[Resource, tuple[int, int, int]] = {}
        for resource, amount in now.items():
            used = self._in_use(resource)
            before = self._notes.get(resource)
            # The same as before, but for what was granted meanwhile: nobody touched it.
            same = before is not None and before[:2] == (amount - self._credited.get(resource, 0), used)
            beats = before[2] + 1 if before is not None and same else 0
            if beats >= _IDLE_BEATS and amount > used:
                self._give_back(resource)
                self._chunks.pop(resource, None)
            else:
                notes[resource] = (amount, used, beats)
        self._credited.clear()
        self._notes = notes

    def _cover(self) -> None:
        """Budgets that were set while requests ran, and requests that came to more than was held for them."""
        if self._send is None:
            return
        for resource, pot in self._leased_pots.items():
            missing = pot.held - pot.left
            if missing > 0 and resource not in self._covering:
                self._numbers += 1
                self._covering[resource] = self._numbers
                self._tell(Ask(self._numbers, ((resource, missing, missing, missing),), forced=True, at=self._clock()))

    def _stock_up(self) -> None:
        """Ask for more of what was asked for more than once and runs low, before a request has to wait for it."""
        if self._waiting:
            return
        for resource, (times, whole) in self._chunks.items():
            pot = self._leased_pots.get(resource)
            if pot is None or times <= _FIRST or resource in self._covering:
                continue
            note, free = self._notes.get(resource), pot.left - pot.held
            if (note is None or not note[2]) and free < times * whole // 2:
                self._numbers += 1
                self._covering[resource] = self._numbers
                self._tell(Ask(self._numbers, ((resource, 0, times * whole - free, whole),), at=self._clock()))

    def _current(self, resource: Resource) -> bool:
        """Whether requests of today would need it."""
        return any(
            pot_of(budget, label_of(budget.period, self._day)) == resource
            for budget in self._budgets.get((Scope(resource[1]), resource[2]), ())
        )

    # How `Accounts` keeps it, with leases.

    def _new_limiter(self, key: str) -> Limiter:
        return LeasedLimiter(key)

    def _new_pot(self, account: Account, budget: Budget, label: str) -> Pot:
        resource = pot_of(budget, label)
        pot = self._leased_pots[resource] = Pot(budget, label, self._stock.pop(resource, 0))
        return pot

    def _fold_line(self, line: Line) -> None:
        key = (line.key, line.team, line.model, line.day)
        tokens, nano_usd = self._sums.get(key, (0, 0))
        self._sums[key] = (tokens + line.tokens, nano_usd + line.nano_usd)
        self._untold.add(key)

    def _derive(self) -> None:
        for resource, pot in self._leased_pots.items():
            self._stock[resource] = pot.left
        self._leased_pots = {}
        super()._derive()
        # Of yesterday, or of a budget that is no more.
        self._stock = {resource: left for resource, left in self._stock.items() if self._current(resource)}
        oldest = self._day - DAYS_KEPT
        self._sums = {line: sums for line, sums in self._sums.items() if line[3] >= oldest or line in self._untold}
