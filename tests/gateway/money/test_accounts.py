"""The treasury in memory: what is admitted, what is refused and why, and what is counted."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pressroom.gateway.admission import Caller, Refused
from pressroom.gateway.ledger import Opened
from pressroom.gateway.money import UNKNOWN, Accounts, Hold, Scope, Spending, Unit

from .clocks import DAY, NOON, Clocks, alice, budget, held, refused

USD = 10**9


def ask(accounts: Accounts, caller: Caller, tokens: int = 0, nano_usd: int = 0, model: str = "chat") -> object:
    return accounts.admit(caller, model, tokens=tokens, nano_usd=nano_usd, request_id="r")


def test_without_limits_and_budgets_everything_is_admitted_and_counted() -> None:
    clocks = Clocks()
    accounts = clocks.accounts()
    hold = held(ask(accounts, alice(), 1000, 5 * USD))
    assert (hold.tokens, hold.nano_usd) == (1000, 5 * USD)
    assert accounts.held(Scope.TEAM, "research", Unit.TOKENS) == 1000
    hold.settle(tokens=700, nano_usd=3 * USD)
    for scope, name in ((Scope.KEY, "alice"), (Scope.TEAM, "research"), (Scope.DEPLOYMENT, "chat"), (Scope.ALL, "")):
        for label in ("2026-11-21", "2026-11", "total"):
            assert accounts.spent(scope, name, label, Unit.TOKENS) == 700
            assert accounts.spent(scope, name, label, Unit.USD) == 3 * USD
        assert accounts.held(scope, name, Unit.TOKENS) == accounts.held(scope, name, Unit.USD) == 0
    assert accounts.open() == []


def test_whoever_has_no_key_counts_for_the_deployment_and_for_all() -> None:
    accounts = Clocks().accounts()
    held(ask(accounts, Caller(), 10)).settle(tokens=10, nano_usd=0)
    assert accounts.spent(Scope.ALL, "", "total", Unit.TOKENS) == 10
    assert accounts.spent(Scope.KEY, "", "total", Unit.TOKENS) == 0


def test_a_hold_says_whether_a_budget_counts_it() -> None:
    accounts = Clocks().accounts(budget("key:alice", "10 tokens"))
    assert held(ask(accounts, alice(), 1)).counts
    assert not held(ask(accounts, Caller("bob"), 1)).counts


def test_200_at_once_on_a_budget_for_50() -> None:
    accounts = Clocks().accounts(budget("team:research", "50usd/month"))
    callers = [Caller(f"key{n}", "research") for n in range(7)]
    answers = [ask(accounts, callers[n % 7], 100, USD, model=f"m{n % 3}") for n in range(200)]
    holds = [answer for answer in answers if isinstance(answer, Hold)]
    assert len(holds) == 50
    assert answers[:50] == holds
    for hold in holds:
        hold.settle(tokens=100, nano_usd=USD // 2)
    # Half of it came back: exactly 25 more fit.
    more = [answer for answer in (ask(accounts, callers[0], 1, USD) for _ in range(200)) if isinstance(answer, Hold)]
    assert len(more) == 25
    for hold in more:
        hold.settle(tokens=1, nano_usd=USD)
    assert accounts.spent(Scope.TEAM, "research", "2026-11", Unit.USD) == 50 * USD
    problem = refused(ask(accounts, callers[0], 1, 1)).problem
    assert problem.status == 429


def test_a_refusal_over_budget_says_which_how_much_is_left_and_until_when() -> None:
    clocks = Clocks()
    accounts = clocks.accounts(budget("key:alice", "5usd/day"), budget("all", "100usd"))
    held(ask(accounts, alice(), 1, 4 * USD)).settle(tokens=1, nano_usd=4 * USD + USD // 4)
    found = refused(ask(accounts, alice(), 1, 2 * USD))
    assert found.short == "budget"
    problem = found.problem
    assert (problem.status, problem.code, problem.type) == (429, "insufficient_quota", "insufficient_quota")
    assert problem.retry_after_s == 12 * 3600
    assert problem.message == (
        "You exceeded the budget of key alice, 5 USD a day: 0.75 USD of it is left; this request may take 2 USD. "
        "It begins anew at 2026-11-22 00:00 UTC."
    )
    # One that waits for nothing: the budget is not large enough for it, or never begins anew.
    never = refused(ask(accounts, alice(), 1, 6 * USD)).problem
    assert never.retry_after_s is None
    assert never.message == (
        "This request may take 6 USD, more than the whole of the budget of key alice, 5 USD a day: it never fits. "
        "Ask for a shorter answer (max_tokens), send a shorter prompt, or have the budget raised."
    )
    over_all = refused(ask(accounts, Caller("bob"), 1, 99 * USD)).problem
    assert over_all.retry_after_s is None
    assert "budget of all, 100 USD in all" in over_all.message and "anew" not in over_all.message


def test_a_budget_that_is_only_held_is_worth_another_try_soon() -> None:
    accounts = Clocks().accounts(budget("deployment:chat", "100 tokens/month"))
    hold = held(ask(accounts, alice(), 80))
    problem = refused(ask(accounts, alice(), 30)).problem
    assert problem.retry_after_s == 1
    assert "20 tokens of it are left, and 80 tokens held by running requests" in problem.message
    hold.settle(tokens=10, nano_usd=0)
    held(ask(accounts, alice(), 90))


@pytest.mark.parametrize(
    ("amount", "spent", "left"),
    [
        ("10 tokens", 10, "0 tokens of it are left"),
        ("10 tokens", 9, "1 token of it is left"),
        ("10 tokens", 8, "2 tokens of it are left"),
        ("10usd", 9 * USD, "1 USD of it is left"),
        ("10usd", 10 * USD, "0 USD of it is left"),
    ],
)
def test_what_is_left_is_said_in_the_right_number(amount: str, spent: int, left: str) -> None:
    accounts = Clocks().accounts(budget("all", amount))
    tokens, nano_usd = (0, spent) if "usd" in amount else (spent, 0)
    held(ask(accounts, alice(), tokens, nano_usd)).settle(tokens=tokens, nano_usd=nano_usd)
    assert left in refused(ask(accounts, alice(), 3 if tokens else 0, 0 if tokens else 2 * USD)).problem.message


def test_a_request_that_goes_on_to_something_dearer_is_told_of_all_of_it() -> None:
    accounts = Clocks().accounts(budget("all", "100 tokens"))
    held(ask(accounts, alice(), 30)).settle(tokens=30, nano_usd=0)
    hold = held(ask(accounts, alice(), 60))
    other = held(ask(accounts, alice(), 5))
    extended = refused(hold.extend(tokens=68, nano_usd=0)).problem
    assert "65 tokens of it are left, and 5 tokens held by running requests; this request may take 68" in (
        extended.message
    )
    assert "more than the whole" in refused(hold.extend(tokens=101, nano_usd=0)).problem.message
    other.settle(tokens=0, nano_usd=0)
    assert hold.extend(tokens=68, nano_usd=0) is None


def test_several_budgets_of_one_account_all_hold() -> None:
    accounts = Clocks().accounts(
        budget("key:alice", "1usd/day"), budget("key:alice", "1000 tokens/day"), budget("key:alice", "1500 tokens")
    )
    assert "1 USD" in refused(ask(accounts, alice(), 10, 2 * USD)).problem.message
    assert "1,000 tokens" in refused(ask(accounts, alice(), 1001, 1)).problem.message
    held(ask(accounts, alice(), 1000, 0)).settle(tokens=1000, nano_usd=0)
    assert refused(ask(accounts, alice(), 1, 0)).problem.retry_after_s == 12 * 3600


def test_what_costs_nothing_is_admitted_on_an_empty_or_overdrawn_budget() -> None:
    accounts = Clocks().accounts(budget("key:alice", "0usd/day"))
    refused(ask(accounts, alice(), 5, 1))
    held(ask(accounts, alice(), 5, 0)).settle(tokens=5, nano_usd=3)
    assert accounts.overruns == 1
    held(ask(accounts, alice(), 5, 0)).settle(tokens=5, nano_usd=0)


def test_an_unknown_price_fails_closed_where_dollars_are_counted() -> None:
    accounts = Clocks().accounts(budget("team:research", "5usd/day"), budget("key:bob", "100 tokens"))
    found = refused(ask(accounts, alice(requests_per_minute=1), 5, UNKNOWN))
    assert found.short == "price"
    assert "'chat'" in found.problem.message
    # Nothing was taken of the rate for it.
    hold = held(ask(accounts, alice(requests_per_minute=1), 5, USD))
    extended = hold.extend(tokens=5, nano_usd=UNKNOWN)
    assert isinstance(extended, Refused) and extended.short == "price"
    other = held(ask(accounts, Caller("bob"), 5, UNKNOWN))
    assert other.nano_usd == 0
    assert other.extend(tokens=7, nano_usd=UNKNOWN) is None
    other.settle(tokens=7, nano_usd=UNKNOWN)
    assert accounts.spent(Scope.KEY, "bob", "total", Unit.USD) == 0


def test_settling_twice_counts_once_and_more_than_was_held_counts_in_full() -> None:
    accounts = Clocks().accounts(budget("all", "100 tokens"))
    hold = held(ask(accounts, alice(), 50))
    hold.settle(tokens=70, nano_usd=9)
    hold.settle(tokens=1000, nano_usd=1000)
    assert accounts.spent(Scope.ALL, "", "total", Unit.TOKENS) == 70
    assert accounts.overruns == 1
    assert [pot.held for pot in accounts.pots()] == [0]
    assert isinstance(ask(accounts, alice(), 31), Refused)
    held(ask(accounts, alice(), 30))


def test_extending() -> None:
    accounts = Clocks().accounts(budget("all", "100 tokens"), budget("all", "1usd"))
    hold = held(ask(accounts, alice(tokens_per_minute=150), 50, USD // 2))
    assert hold.extend(tokens=40, nano_usd=USD) is None
    assert (hold.tokens, hold.nano_usd) == (50, USD)
    assert isinstance(hold.extend(tokens=101, nano_usd=0), Refused)
    assert isinstance(hold.extend(tokens=60, nano_usd=USD + 1), Refused)
    assert (hold.tokens, hold.nano_usd) == (50, USD)
    assert sorted(pot.held for pot in accounts.pots()) == [50, USD]
    assert hold.extend(tokens=100, nano_usd=USD) is None
    hold.settle(tokens=0, nano_usd=0)
    assert [pot.held for pot in accounts.pots()] == [0, 0]


def test_holds_expire_and_are_counted_when_they_end_after_all() -> None:
    clocks = Clocks()
    accounts = clocks.accounts(budget("all", "100 tokens"), lifetime_s=600)
    caller = alice(parallel=1)
    hold = held(ask(accounts, caller, 100))
    refused(ask(accounts, caller, 1))
    clocks.on(599)
    assert accounts.expire() == 0
    clocks.on(10)
    again = held(ask(accounts, caller, 100))
    assert accounts.expired == 1 and hold.tokens == 0
    hold.settle(tokens=30, nano_usd=0)
    hold.settle(tokens=30, nano_usd=0)
    assert accounts.spent(Scope.ALL, "", "total", Unit.TOKENS) == 30
    assert [(pot.left, pot.held) for pot in accounts.pots()] == [(70, 100)]
    again.settle(tokens=5, nano_usd=0)
    assert [(pot.left, pot.held) for pot in accounts.pots()] == [(65, 0)]
    assert accounts.running("alice") == 0


def test_an_expired_hold_that_is_extended_is_held_anew() -> None:
    clocks = Clocks()
    accounts = clocks.accounts(budget("all", "100 tokens"), lifetime_s=60)
    hold = held(ask(accounts, alice(), 80))
    clocks.on(100)
    other = held(ask(accounts, alice(), 50))
    assert isinstance(hold.extend(tokens=80, nano_usd=0), Refused)
    assert hold.extend(tokens=50, nano_usd=0) is None
    assert [pot.held for pot in accounts.pots()] == [100]
    hold.settle(tokens=50, nano_usd=0)
    other.settle(tokens=50, nano_usd=0)
    assert [(pot.left, pot.held) for pot in accounts.pots()] == [(0, 0)]
    assert accounts.open() == []


def test_a_request_over_midnight_counts_for_the_day_it_began() -> None:
    clocks = Clocks(datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC).timestamp())
    accounts = clocks.accounts(
        budget("key:alice", "100 tokens/day"),
        budget("key:alice", "150 tokens/month"),
        budget("key:alice", "170 tokens"),
    )
    late = held(ask(accounts, alice(), 100))
    refused(ask(accounts, alice(), 1))
    clocks.on(2)
    # A day and a month later: what the late one holds counts for all time only.
    refused(ask(accounts, alice(), 71))
    early = held(ask(accounts, alice(), 70))
    late.settle(tokens=90, nano_usd=0)
    early.settle(tokens=60, nano_usd=0)
    spent = {label: accounts.spent(Scope.KEY, "alice", label, Unit.TOKENS) for label in ("2026-11-30", "2026-12-01")}
    assert spent == {"2026-11-30": 90, "2026-12-01": 60}
    assert accounts.spent(Scope.KEY, "alice", "2026-11", Unit.TOKENS) == 90
    assert accounts.spent(Scope.KEY, "alice", "total", Unit.TOKENS) == 150
    refused(ask(accounts, alice(), 21))
    held(ask(accounts, alice(), 20))


def test_the_moment_of_the_row_decides_on_its_day() -> None:
    accounts = Clocks().accounts()
    hold = held(accounts.admit(alice(), "chat", tokens=1, nano_usd=0, request_id="r", at=NOON + 3 * DAY))
    hold.settle(tokens=1, nano_usd=0)
    assert accounts.spent(Scope.ALL, "", "2026-11-24", Unit.TOKENS) == 1


@pytest.mark.parametrize("jump", [-DAY, DAY, -40 * DAY, 400 * DAY, -20_000 * DAY])
def test_a_clock_that_jumps_finds_what_was_spent_and_resets_nothing_twice(jump: float) -> None:
    clocks = Clocks()
    accounts = clocks.accounts(budget("all", "100 tokens/day"), budget("all", "1000 tokens"))
    caller = alice(requests_per_minute=10)
    held(ask(accounts, caller, 100)).settle(tokens=90, nano_usd=0)
    clocks.wall += jump
    elsewhere = held(ask(accounts, caller, 100))
    clocks.wall -= jump
    refused(ask(accounts, caller, 11))
    elsewhere.settle(tokens=100, nano_usd=0)
    held(ask(accounts, caller, 10)).settle(tokens=10, nano_usd=0)
    clocks.wall += jump
    refused(ask(accounts, caller, 1))
    assert accounts.spent(Scope.ALL, "", "total", Unit.TOKENS) == 200
    # Rates do not know of the wall's clock: four were admitted of ten, those refused took nothing.
    clocks.wall -= jump
    for _ in range(7):
        held(ask(accounts, caller, 0)).settle(tokens=0, nano_usd=0)
    assert refused(ask(accounts, caller, 0)).short == "requests"


def test_a_budget_that_is_set_later_counts_from_the_start_of_its_period_and_what_runs() -> None:
    clocks = Clocks()
    accounts = clocks.accounts()
    held(ask(accounts, alice(), 30, 5)).settle(tokens=30, nano_usd=5)
    clocks.on(DAY)
    held(ask(accounts, alice(), 20, 5)).settle(tokens=20, nano_usd=5)
    running = held(ask(accounts, alice(), 40))
    accounts.renew([budget("team:research", "100 tokens/month")])
    refused(ask(accounts, alice(), 11))
    held(ask(accounts, alice(), 10)).settle(tokens=10, nano_usd=0)
    running.settle(tokens=0, nano_usd=0)
    accounts.renew([budget("team:research", "80 tokens/month")])
    refused(ask(accounts, alice(), 21))
    held(ask(accounts, alice(), 20))
    accounts.renew([])
    held(ask(accounts, alice(), 10**9))
    assert accounts.pots() == []


def test_what_was_spent_before_the_start_counts() -> None:
    accounts = Clocks().accounts(budget("key:alice", "10 tokens/day"), budget("all", "1usd/month"))
    accounts.load(
        [
            Spending("key", "alice", "2026-11-21", 8, 100),
            Spending("key", "alice", "2026-11-20", 1000, 100),
            Spending("all", "", "2026-11", 1008, USD - 1),
            Spending("key", "", "2026-11-21", 5, 5),
            Spending("planet", "mars", "2026-11-21", 5, 5),
        ]
    )
    refused(ask(accounts, alice(), 3))
    refused(ask(accounts, alice(), 1, 2))
    held(ask(accounts, alice(), 2, 1))


def test_holds_of_a_process_that_was_killed_are_put_back_and_expire() -> None:
    clocks = Clocks()
    accounts = clocks.accounts(budget("key:alice", "100 tokens/day"))
    accounts.hold_until("alice", "research", "chat", tokens=150, nano_usd=7, at=NOON - 100, seconds=50)
    yesterdays = accounts.hold_until("alice", "research", "chat", tokens=90, nano_usd=7, at=NOON - DAY, seconds=1000)
    refused(ask(accounts, alice(), 1))
    clocks.on(80)
    held(ask(accounts, alice(), 100))
    yesterdays.settle(tokens=90, nano_usd=0)
    assert accounts.spent(Scope.KEY, "alice", "2026-11-20", Unit.TOKENS) == 90


def test_what_was_lost_with_a_process_is_held_for_ten_minutes_from_when_it_began() -> None:
    clocks = Clocks()
    accounts = clocks.accounts(budget("key:alice", "100 tokens/day"))
    lost = [
        Opened("a", NOON - 601, "alice", "research", "chat", 50, 7),
        Opened("b", NOON - 500, "alice", "research", "chat", 30, 7),
        Opened("c", NOON + DAY / 4, "alice", "research", "chat", 20, 7),  # the clock was put back
    ]
    accounts.hold_lost(lost)
    assert accounts.held(Scope.KEY, "alice", Unit.TOKENS) == 50
    clocks.on(150)
    accounts.expire()
    assert accounts.held(Scope.KEY, "alice", Unit.TOKENS) == 20
    clocks.on(500)
    accounts.expire()
    assert accounts.held(Scope.KEY, "alice", Unit.TOKENS) == 0


def test_days_are_forgotten_in_the_end_and_totals_are_not() -> None:
    clocks = Clocks()
    accounts = clocks.accounts()
    for _ in range(100):
        held(ask(accounts, alice(), 1)).settle(tokens=1, nano_usd=0)
        clocks.on(DAY)
    assert accounts.spent(Scope.ALL, "", "total", Unit.TOKENS) == 100
    assert accounts.spent(Scope.ALL, "", "2026-12", Unit.TOKENS) == 31
    assert accounts.spent(Scope.ALL, "", "2026-11-21", Unit.TOKENS) == 0
    assert accounts.spent(Scope.ALL, "", "2026-12-31", Unit.TOKENS) == 1


def test_memory_is_given_back() -> None:
    clocks = Clocks()
    accounts = clocks.accounts(budget("all", "100 tokens/day"), lifetime_s=10)
    for n in range(500):
        hold = ask(accounts, alice(), 1)
        if n % 7 and isinstance(hold, Hold):
            hold.settle(tokens=0, nano_usd=0)
        clocks.on(1)
    assert len(accounts.open()) < 5
    assert len(accounts._slots) < 200 and len(accounts._lines) == 1
