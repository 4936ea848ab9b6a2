"""Whatever is admitted, extended, settled, left to expire and changed, in whatever order: nothing is overspent, nothing
is refused that fits, and nothing stays held. Against a model that adds everything up anew each time."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from pressroom.gateway.admission import Caller, Refused
from pressroom.gateway.money import Budget, Hold, Period, Scope, Unit

from .clocks import Clocks

LIFETIME_S = 1000
STEP_S = LIFETIME_S / 128
KEYS = {"alice": "red", "bob": "red", "carol": "", "": ""}
MODELS = ("chat", "code")
START = datetime(2026, 11, 30, 20, tzinfo=UTC).timestamp()

budgets = st.lists(
    st.builds(
        lambda whose, unit, period, amount: Budget(
            scope=Scope(whose[0]), name=whose[1], unit=unit, period=period, amount=amount
        ),
        st.sampled_from(
            [("key", "alice"), ("key", "bob"), ("team", "red"), ("deployment", "chat"), ("all", ""), ("key", "nobody")]
        ),
        st.sampled_from(list(Unit)),
        st.sampled_from(list(Period)),
        st.integers(0, 300),
    ),
    max_size=6,
    unique_by=lambda budget: (budget.scope, budget.name, budget.unit, budget.period),
)


@dataclass
class Asked:
    """What the model knows of one request."""

    hold: Hold
    key: str
    model: str
    at: float
    mono: int
    tokens: int
    nano_usd: int
    spent_tokens: int = 0
    spent_nano: int = 0


def label(period: Period, at: float) -> str:
    text = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
    return {Period.DAY: text, Period.MONTH: text[:7], Period.TOTAL: "total"}[period]


class Treasuries(RuleBasedStateMachine):
    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.clocks = Clocks(START)
        self.accounts = self.clocks.accounts(lifetime_s=LIFETIME_S)
        self.budgets: list[Budget] = []
        self.requests: list[Asked] = []
        self.callers = {key: Caller(key, team) for key, team in KEYS.items()}

    def counts(self, budget: Budget, request: Asked) -> bool:
        whose = {
            Scope.KEY: request.key,
            Scope.TEAM: KEYS[request.key],
            Scope.DEPLOYMENT: request.model,
            Scope.ALL: "",
        }
        return whose[budget.scope] == budget.name

    def taken(self, budget: Budget, at: float) -> tuple[int, int]:
        """Spent and held of a budget in the period of `at`."""
        usd = budget.unit is Unit.USD
        same = [
            request
            for request in self.requests
            if self.counts(budget, request) and label(budget.period, request.at) == label(budget.period, at)
        ]
        spent = sum(request.spent_nano if usd else request.spent_tokens for request in same)
        return spent, sum(request.nano_usd if usd else request.tokens for request in same)

    def fits(self, request: Asked, more_tokens: int, more_nano: int) -> bool:
        for budget in self.budgets:
            need = more_nano if budget.unit is Unit.USD else more_tokens
            if self.counts(budget, request) and need and need + sum(self.taken(budget, request.at)) > budget.amount:
                return False
        return True

    @rule(target=running, key=st.sampled_from(list(KEYS)), model=st.sampled_from(MODELS), tokens=st.integers(0, 120),
          nano_usd=st.integers(0, 120))  # fmt: skip
    def admit(self, key: str, model: str, tokens: int, nano_usd: int) -> object:
        self.forget_expired()
        found = self.accounts.admit(self.callers[key], model, tokens=tokens, nano_usd=nano_usd, request_id="r")
        request = Asked(found, key, model, self.clocks.wall, self.clocks.mono, tokens, nano_usd)  # type: ignore[arg-type]
        assert self.fits(request, tokens, nano_usd) is isinstance(found, Hold)
        if isinstance(found, Hold):
            self.requests.append(request)
            return request
        return multiple()

    @rule(request=running, tokens=st.integers(0, 200), nano_usd=st.integers(0, 200))
    def extend(self, request: Asked, tokens: int, nano_usd: int) -> None:
        self.forget_expired()
        more = max(tokens - request.tokens, 0), max(nano_usd - request.nano_usd, 0)
        revived = request.hold not in self.accounts.open()
        fits = self.fits(request, *more)
        found = request.hold.extend(tokens=tokens, nano_usd=nano_usd)
        assert isinstance(found, Refused) is not fits
        if revived:
            request.mono = self.clocks.mono
        if fits:
            request.tokens += more[0]
            request.nano_usd += more[1]

    @rule(request=consumes(running), tokens=st.integers(0, 150), nano_usd=st.integers(0, 150), again=st.booleans())
    def settle(self, request: Asked, tokens: int, nano_usd: int, again: bool) -> None:
        request.hold.settle(tokens=tokens, nano_usd=nano_usd)
        if again:
            request.hold.settle(tokens=tokens + 1, nano_usd=0)
        request.tokens = request.nano_usd = 0
        request.spent_tokens, request.spent_nano = tokens, nano_usd

    @rule(seconds=st.sampled_from([0.5, 60, LIFETIME_S / 2, LIFETIME_S, 5 * 3600]))
    def time_passes(self, seconds: float) -> None:
        self.clocks.on(seconds)

    @rule(seconds=st.sampled_from([-86400, 86400, -3 * 86400, 40 * 86400, -40 * 86400]))
    def the_clock_is_set(self, seconds: float) -> None:
        self.clocks.wall += seconds

    @rule(found=budgets)
    def renew(self, found: list[Budget]) -> None:
        self.budgets = found
        self.accounts.renew(found)

    def forget_expired(self) -> None:
        """Between its lifetime and a step later a hold may or may not have expired: what is open is asked, the rest is
        checked."""
        self.accounts.expire()
        open_holds = set(map(id, self.accounts.open()))
        for request in self.requests:
            if id(request.hold) in open_holds:
                assert self.clocks.mono - request.mono <= (LIFETIME_S + 2 * STEP_S) * 10**9
            elif request.hold.tokens == request.hold.nano_usd == 0:
                if request.tokens or request.nano_usd:
                    assert self.clocks.mono - request.mono >= LIFETIME_S * 10**9
                request.tokens = request.nano_usd = 0

    @invariant()
    def the_books_agree(self) -> None:
        self.forget_expired()
        for pot in self.accounts.pots():
            # Pots are for the labels of today and of what runs; the model says by any moment of the same label.
            moments = [request.at for request in self.requests if label(pot.budget.period, request.at) == pot.label]
            spent, held = self.taken(pot.budget, moments[0]) if moments else (0, 0)
            assert (pot.left, pot.held) == (pot.budget.amount - spent, held)
        for unit in Unit:
            total = sum(r.spent_nano if unit is Unit.USD else r.spent_tokens for r in self.requests)
            assert self.accounts.spent(Scope.ALL, "", "total", unit) == total
            held = sum(r.nano_usd if unit is Unit.USD else r.tokens for r in self.requests)
            assert self.accounts.held(Scope.ALL, "", unit) == held


Treasuries.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestTreasuries = Treasuries.TestCase


def test_after_10_000_requests_that_ended_in_every_way_nothing_is_held() -> None:
    random.seed(5)
    clocks = Clocks(START)
    accounts = clocks.accounts(
        Budget(scope=Scope.ALL, name="", unit=Unit.TOKENS, period=Period.DAY, amount=4_000_000),
        Budget(scope=Scope.TEAM, name="red", unit=Unit.USD, period=Period.TOTAL, amount=2_500_000),
        Budget(scope=Scope.KEY, name="bob", unit=Unit.USD, period=Period.MONTH, amount=500_000),
        lifetime_s=20,
    )
    callers = [Caller(key, team) for key, team in KEYS.items()]
    running: list[Hold] = []
    refused = 0
    for _ in range(10_000):
        found = accounts.admit(
            random.choice(callers),
            random.choice(MODELS),
            tokens=random.randrange(3000),
            nano_usd=random.randrange(3000),
            request_id="r",
        )
        if isinstance(found, Hold):
            running.append(found)
        else:
            refused += 1
        while running and random.random() < 0.55:
            hold = running.pop(random.randrange(len(running)))
            how = random.random()
            if how < 0.2:
                continue  # whoever made it is gone and says nothing
            if how < 0.4:
                hold.extend(
                    tokens=hold.tokens + random.randrange(2000), nano_usd=hold.nano_usd + random.randrange(2000)
                )
            hold.settle(tokens=random.randrange(hold.tokens + 1), nano_usd=random.randrange(hold.nano_usd + 1))
        clocks.on(random.random() * 2)
    assert 0 < refused < 10_000 and accounts.expired > 500
    for hold in running:
        hold.settle(tokens=0, nano_usd=0)
    clocks.on(30)
    accounts.expire()
    assert accounts.open() == []
    assert [pot.held for pot in accounts.pots()] == [0] * len(accounts.pots())
    for pot in accounts.pots():
        spent = accounts.spent(pot.budget.scope, pot.budget.name, pot.label, pot.budget.unit)
        assert pot.left == pot.budget.amount - spent >= 0
