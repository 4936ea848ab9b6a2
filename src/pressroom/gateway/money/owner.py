"""The owner: decides on all budgets and limits, and sets parts of them aside for worker processes."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from time import monotonic_ns

from pressroom.gateway.admission import Limits, Refused
from pressroom.gateway.money._rates import MINUTE
from pressroom.gateway.money._refusals import at_once, over_budget, owner_gone, too_fast, too_large
from pressroom.gateway.money.accounts import Accounts
from pressroom.gateway.money.base import Budget
from pressroom.gateway.money.leases import (
    DAYS_KEPT,
    Answer,
    Ask,
    FromOwner,
    FromWorker,
    Hello,
    LineKey,
    Recall,
    Refusal,
    Report,
    Resource,
    Seen,
    Spent,
    Welcome,
)
from pressroom.gateway.money.periods import begins_anew, day_of

_log = logging.getLogger(__name__)

_S = 10**9
# A worker that does not answer a recall in this time is passed over.
_RECALL_NS = _S
_REMEMBERED = 1_000


class _Lease:
    """What one worker has: `balances` as the owner sees them, `unseen` grants that its last report did not know of."""

    __slots__ = ("balances", "channel", "grant", "lines", "oldest", "pid", "rates", "session", "unseen", "until")

    def __init__(self, session: str, pid: int) -> None:
        self.session = session
        self.pid = pid
        self.channel: Channel | None = None
        self.balances: dict[Resource, int] = {}
        #: Rates it was granted something of: what its requests took of them and did not need may come back any time.
        self.rates: set[Resource] = set()
        self.lines: dict[LineKey, tuple[int, int]] = {}
        #: Lines of days before this one are forgotten.
        self.oldest = 0
        self.unseen: deque[tuple[int, dict[Resource, int]]] = deque()
        self.grant = 0
        self.until = 0


class Channel:
    """A connection from a worker. Its transport calls `receive` with each message, in order, and `close` at the end."""

    def __init__(self, owner: Owner, send: Callable[[FromOwner], None]) -> None:
        self._owner = owner
        self.send = send
        self.lease: _Lease | None = None

    def receive(self, message: FromWorker) -> None:
        """A message of the worker; before its `Hello`, or after another connection took its place, it is nothing."""
        if isinstance(message, Hello):
            self._owner._hello(self, message)
        elif self.lease is not None and self.lease.channel is self:
            if isinstance(message, Ask):
                self._owner._ask(self.lease, message)
            else:
                self._owner._report(self.lease, message)

    def close(self) -> None:
        """The connection has ended; the worker may come back."""
        lease, self.lease = self.lease, None
        if lease is not None and lease.channel is self:
            lease.channel = None
            self._owner._forget_asks(lease)


class Owner:
    """Leases out what `accounts` has. All of it is used on one event loop; call `tick` a few times a second.

    `settled` says what the ledger's rows of a worker's session come to, all of them, read now: it is asked once the
    process is gone. `alive` says whether it is not. `expected`: at a start, the sessions whose processes may still live
    and hold leases of an owner before this one, each with what of its rows is in the spending that `accounts` has
    loaded; until they have said what they hold, or are gone, nothing is granted. None: nobody knows, and nothing is
    granted for `lease_s`.
    """

    def __init__(
        self,
        accounts: Accounts,
        *,
        settled: Callable[[str], Iterable[Spent]],
        alive: Callable[[int], bool],
        budgets: Iterable[Budget] = (),
        expected: Mapping[str, tuple[int, Iterable[Spent]]] | None = None,
        lease_s: float = 5.0,
        silence_s: float = 3600.0,
        monotonic: Callable[[], int] = monotonic_ns,
    ) -> None:
        self.accounts = accounts
        self._settled = settled
        self._alive = alive
        self._lease_s = lease_s
        self._lease_ns = int(lease_s * _S)
        self._silence_ns = int(silence_s * _S)
        self._monotonic = monotonic
        self._budgets = tuple(budgets)
        self._leases: dict[str, _Lease] = {}
        self._buried: dict[str, _Lease] = {}
        self._rated: dict[Resource, int] = {}
        # Asks that others' unused leases may help: those of this recall, and those that wait for the next.
        self._round = 0
        self._recalling = False
        self._round_until = 0
        self._awaited: set[str] = set()
        self._current: list[tuple[_Lease, Ask]] = []
        self._next: list[tuple[_Lease, Ask]] = []
        self._grace_until = 0 if expected is not None else monotonic() + self._lease_ns
        self._missing: set[str] = set()
        for session, (pid, lines) in (expected or {}).items():
            lease = self._leases[session] = _Lease(session, pid)
            lease.lines = {spent.line: (spent.tokens, spent.nano_usd) for spent in lines}
            lease.until = monotonic() + self._lease_ns
            self._missing.add(session)
        self.accounts.renew(self._budgets)

    def open(self, send: Callable[[FromOwner], None]) -> Channel:
        """A worker has connected; `send` takes the messages to it, and delivers them later, in order."""
        return Channel(self, send)

    def renew(self, budgets: Iterable[Budget]) -> None:
        """These are the budgets from now on, here and at every worker."""
        self._budgets = tuple(budgets)
        self.accounts.renew(self._budgets)
        for lease in self._leases.values():
            self._send(lease, Welcome(self._lease_s, self._budgets))

    def tick(self) -> None:
        """Take back the leases of processes that are gone, and answer those who have waited long enough."""
        now = self._monotonic()
        self.accounts.expire()
        if self._grace_until and now >= self._grace_until:
            self._grace_until = 0
        if self._recalling and now >= self._round_until:
            self._decide()
        self._serve()
        for lease in list(self._leases.values()):
            if (lease.channel is None and not self._alive(lease.pid)) or now >= lease.until + self._silence_ns:
                self._bury(lease)

    @property
    def leases(self) -> dict[str, dict[Resource, int]]:
        """What each worker has that is not spent, by its session."""
        return {
            session: {resource: amount for resource, amount in lease.balances.items() if amount}
            for session, lease in self._leases.items()
        }

    # What workers say.

    def _hello(self, channel: Channel, hello: Hello) -> None:
        lease = self._leases.get(hello.session) or self._buried.pop(hello.session, None)
        if lease is None:
            lease = _Lease(hello.session, hello.pid)
        self._leases[hello.session] = lease
        lease.pid = hello.pid
        lease.channel = channel
        channel.lease = lease
        lease.unseen.clear()
        self._forget_asks(lease)
        self._count(lease, hello.lines)
        declared = dict(hello.balances)
        for resource in [*lease.balances, *declared]:
            self._declare(lease, resource, declared.get(resource, 0))
        lease.until = self._monotonic() + self._lease_ns
        self._missing.discard(hello.session)
        channel.send(Welcome(self._lease_s, self._budgets))
        self._serve()

    def _ask(self, lease: _Lease, ask: Ask) -> None:
        if ask.forced:
            self._grant(lease, ask, [(need[0], need[1]) for need in ask.needs])
        elif self._waits:
            self._next.append((lease, ask))
        elif not self._try(lease, ask):
            if self._recallable(lease, ask):
                self._next.append((lease, ask))
                self._serve()
            else:
                self._refuse(lease, ask)

    def _report(self, lease: _Lease, report: Report) -> None:
        lease.until = self._monotonic() + self._lease_ns
        while lease.unseen and lease.unseen[0][0] <= report.seen:
            lease.unseen.popleft()
        self._count(lease, report.lines)
        for resource, amount in report.balances:
            self._declare(lease, resource, amount)
        for resource, amount in report.returned:
            self._refill(resource, amount)
        self._send(lease, Seen(report.number))
        if self._recalling and report.recalled == self._round:
            self._awaited.discard(lease.session)
            if not self._awaited:
                self._decide()

    def _forget_asks(self, lease: _Lease) -> None:
        """It is not there to hear an answer, and will ask again."""
        self._next = [each for each in self._next if each[0] is not lease]
        self._current = [each for each in self._current if each[0] is not lease]
        self._awaited.discard(lease.session)
        if self._recalling and not self._awaited:
            self._decide()

    # How it decides.

    @property
    def _waits(self) -> bool:
        """Whether leases of an owner before this one may exist that are not known yet."""
        return bool(self._grace_until or self._missing)

    def _serve(self) -> None:
        """Ask for what is not used, once for all who wait for it."""
        if self._waits or not self._next or self._recalling:
            return
        self._current, self._next = self._next, []
        asking = {lease.session for lease, _ in self._current}
        wanted = {need[0] for _, ask in self._current for need in ask.needs}
        self._round += 1
        self._recalling = True
        self._round_until = self._monotonic() + _RECALL_NS
        for lease in self._leases.values():
            if lease.channel is None or (len(asking) == 1 and lease.session in asking):
                continue
            theirs = tuple(
                resource for resource in wanted if lease.balances.get(resource, 0) > 0 or resource in lease.rates
            )
            if theirs:
                self._awaited.add(lease.session)
                self._send(lease, Recall(self._round, theirs))
        if not self._awaited:
            self._decide()

    def _decide(self) -> None:
        """All who had something to give back have, or are too slow: who fits now is granted, the others are refused."""
        self._recalling = False
        self._awaited.clear()
        asks, self._current = self._current, []
        for lease, ask in asks:
            if not self._try(lease, ask):
                self._refuse(lease, ask)
        self._serve()

    def _try(self, lease: _Lease, ask: Ask) -> bool:
        """Grant all of it, if there is room."""
        amounts: list[tuple[Resource, int]] = []
        share = 2 * len(self._leases)
        for resource, need, want, _ in ask.needs:
            room = self._room(resource, ask)
            if room is None:
                amounts.append((resource, want))
            elif need > max(room, 0):
                return False
            else:
                amounts.append((resource, min(want, max(need, room // share, 0))))
        self._grant(lease, ask, amounts)
        return True

    def _recallable(self, lease: _Lease, ask: Ask) -> bool:
        """Whether it could fit, if the others used nothing of what they have."""
        for resource, need, _, _ in ask.needs:
            room = self._room(resource, ask)
            if room is not None and need > max(room, 0):
                others = [each for each in self._leases.values() if each is not lease and each.channel is not None]
                there = sum(max(each.balances.get(resource, 0), 0) for each in others)
                if need > room + there and not any(resource in each.rates for each in others):
                    return False
        return True

    def _room(self, resource: Resource, ask: Ask) -> int | None:
        """What can be granted of it; None: it is not bounded here (any more)."""
        if resource[0] == "pot":
            pot = self.accounts.pot(resource)
            return None if pot is None else pot.left - pot.held
        limiter = self.accounts.limiter_of(
            resource[1],
            Limits(requests_per_minute=ask.limits[0], tokens_per_minute=ask.limits[1], parallel=ask.limits[2]),
        )
        if resource[0] == "parallel":
            return None if limiter.parallel is None else limiter.parallel - limiter.running
        bucket = limiter.requests if resource[0] == "requests" else limiter.tokens
        if bucket is None:
            return None
        # What workers have and did not use is still in the bucket: it leaves no room for more to flow in.
        bucket.level = min(bucket.fill(self._monotonic()), bucket.full - self._rated.get(resource, 0) * MINUTE)
        return bucket.level // MINUTE

    def _grant(self, lease: _Lease, ask: Ask, amounts: list[tuple[Resource, int]]) -> None:
        lease.grant += 1
        granted: dict[Resource, int] = {}
        for resource, amount in amounts:
            granted[resource] = granted.get(resource, 0) + amount
            self._refill(resource, -amount)
            if resource[0] in ("requests", "tokens"):
                lease.rates.add(resource)
            self._set_balance(lease, resource, lease.balances.get(resource, 0) + amount)
        lease.unseen.append((lease.grant, granted))
        self._send(lease, Answer(ask.number, lease.grant, tuple(granted.items()), None))

    def _refuse(self, lease: _Lease, ask: Ask) -> None:
        refused = self._why(ask)
        problem = refused.problem
        refusal = Refusal(
            refused.short, problem.status, problem.message, problem.type, problem.code, problem.retry_after_s
        )
        self._send(lease, Answer(ask.number, 0, (), refusal))

    def _why(self, ask: Ask) -> Refused:
        for resource, need, _, whole in ask.needs:
            room = self._room(resource, ask)
            if room is None or need <= max(room, 0):
                continue
            if resource[0] == "pot":
                pot = self.accounts.pot(resource)
                assert pot is not None
                anew = begins_anew(pot.budget.period, day_of(ask.at))
                # The worker that asks has the rest of what its request takes, and it is held for nobody else.
                held = pot.held - (whole - need)
                return over_budget(pot.budget, pot.left, held, whole, anew, ask.at)
            kind, key = resource
            limiter = self.accounts.limiter_of(key)
            if kind == "parallel":
                return at_once(key, limiter.parallel or 0)
            bucket = limiter.requests if kind == "requests" else limiter.tokens
            assert bucket is not None
            if whole > bucket.limit and kind == "tokens":
                return too_large(key, bucket.limit, whole)
            return too_fast(key, kind, bucket.limit, whole, bucket.wait_ns(need * MINUTE))
        return owner_gone()  # there was room again since it was tried: a moment later it is admitted

    # What it keeps of each worker.

    def _count(self, lease: _Lease, lines: Iterable[Spent]) -> None:
        newest = 0
        for spent in lines:
            newest = max(newest, spent.line[3])
            tokens, nano_usd = lease.lines.get(spent.line, (0, 0))
            more_tokens, more_nano = max(spent.tokens - tokens, 0), max(spent.nano_usd - nano_usd, 0)
            if more_tokens or more_nano:
                lease.lines[spent.line] = (tokens + more_tokens, nano_usd + more_nano)
                self.accounts.spend(*spent.line, tokens=more_tokens, nano_usd=more_nano)
        oldest = newest - DAYS_KEPT
        if oldest > lease.oldest:  # once a day
            lease.oldest = oldest
            lease.lines = {line: sums for line, sums in lease.lines.items() if line[3] >= oldest}

    def _declare(self, lease: _Lease, resource: Resource, amount: int) -> None:
        """The worker says that it has so much; what is under way to it comes on top."""
        self._set_balance(lease, resource, amount + sum(granted.get(resource, 0) for _, granted in lease.unseen))

    def _set_balance(self, lease: _Lease, resource: Resource, amount: int) -> None:
        before = lease.balances.get(resource, 0)
        if amount:
            lease.balances[resource] = amount
        else:
            lease.balances.pop(resource, None)
        if resource[0] == "pot":
            self.accounts.lease(resource, max(amount, 0) - max(before, 0))
        elif resource[0] == "parallel":
            self.accounts.limiter_of(resource[1]).running += amount - before
        else:
            self._rated[resource] = self._rated.get(resource, 0) + amount - before
            if not self._rated[resource]:
                del self._rated[resource]

    def _refill(self, resource: Resource, amount: int) -> None:
        """Put so much back into the bucket of a rate; what is over its brim is cut off when it is looked at."""
        if resource[0] in ("requests", "tokens"):
            limiter = self.accounts.limiter_of(resource[1])
            bucket = limiter.requests if resource[0] == "requests" else limiter.tokens
            if bucket is not None:
                bucket.level += amount * MINUTE

    def _bury(self, lease: _Lease) -> None:
        """Its process is gone: count what it settled and could not report, and take back the rest."""
        oldest = lease.oldest
        self._count(lease, [spent for spent in self._settled(lease.session) if spent.line[3] >= oldest])
        for resource, amount in list(lease.balances.items()):
            self._refill(resource, max(amount, 0))
            self._set_balance(lease, resource, 0)
        if lease.channel is not None:
            lease.channel.lease = None
            lease.channel = None
        lease.unseen.clear()
        del self._leases[lease.session]
        self._missing.discard(lease.session)
        self._forget_asks(lease)
        # One that was taken for gone, and was not, may still come and say what it spent.
        self._buried[lease.session] = lease
        while len(self._buried) > _REMEMBERED:
            del self._buried[next(iter(self._buried))]
        _log.info("worker %s is gone; its leases are taken back", lease.session)
        self._serve()

    def _send(self, lease: _Lease, message: FromOwner) -> None:
        if lease.channel is not None:
            lease.channel.send(message)
