"""Limits of a key: requests and tokens in a minute, and requests at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pressroom.gateway.admission import Caller, Limits, Refused
from pressroom.gateway.money import Accounts, Hold

from .clocks import Clocks, alice, budget, held, refused


def ask(accounts: Accounts, caller: Caller, tokens: int = 0) -> Hold | Refused:
    found = accounts.admit(caller, "chat", tokens=tokens, nano_usd=0, request_id="r")
    assert isinstance(found, (Hold, Refused))
    return found


def test_requests_are_limited_and_the_wait_is_exact() -> None:
    clocks = Clocks()
    accounts, caller = clocks.accounts(), alice(requests_per_minute=6)
    for _ in range(6):
        held(ask(accounts, caller)).settle(tokens=0, nano_usd=0)
    found = refused(ask(accounts, caller))
    assert found.short == "requests"
    problem = found.problem
    assert (problem.status, problem.code, problem.type, problem.retry_after_s) == (
        429,
        "rate_limit_exceeded",
        "requests",
        10,
    )
    assert problem.message == "The key 'alice' may make 6 requests a minute. Try again in 10 s."
    clocks.on(9.999999999)
    assert refused(ask(accounts, caller)).problem.retry_after_s == 1
    clocks.on(0.000000001)
    held(ask(accounts, caller))
    refused(ask(accounts, caller))


def test_tokens_are_taken_at_the_worst_case_and_given_back() -> None:
    clocks = Clocks()
    accounts, caller = clocks.accounts(), alice(tokens_per_minute=1000)
    hold = held(ask(accounts, caller, 900))
    found = refused(ask(accounts, caller, 200))
    assert (found.short, found.problem.retry_after_s) == ("tokens", 6)
    assert "1,000 tokens a minute" in found.problem.message and "asks for 200 tokens" in found.problem.message
    hold.settle(tokens=100, nano_usd=0)
    held(ask(accounts, caller, 900)).settle(tokens=1000, nano_usd=0)  # it came to more: that is a debt
    assert refused(ask(accounts, caller, 1)).problem.retry_after_s == 7
    clocks.on(120)
    held(ask(accounts, caller, 1000))
    found = refused(ask(accounts, caller, 1001))
    assert found.problem.retry_after_s is None and "max_tokens" in found.problem.message


def test_requests_at_once() -> None:
    accounts, caller = Clocks().accounts(), alice(parallel=3)
    holds = [held(ask(accounts, caller)) for _ in range(3)]
    found = refused(ask(accounts, caller))
    assert (found.short, found.problem.code) == ("parallel", "rate_limit_exceeded")
    holds[1].settle(tokens=0, nano_usd=0)
    holds[1].settle(tokens=0, nano_usd=0)
    held(ask(accounts, caller))
    refused(ask(accounts, caller))


def test_all_or_nothing() -> None:
    clocks = Clocks()
    accounts = clocks.accounts(budget("key:alice", "10 tokens/day"))
    caller = alice(requests_per_minute=2, tokens_per_minute=100, parallel=1)
    for _ in range(20):
        assert refused(ask(accounts, caller, 11)).short == "budget"
        assert refused(ask(accounts, caller, 101)).short == "tokens"
    held(ask(accounts, caller, 10)).settle(tokens=0, nano_usd=0)
    held(ask(accounts, caller, 10))
    assert accounts.running("alice") == 1


def test_a_limit_of_nothing_admits_nothing() -> None:
    accounts = Clocks().accounts()
    assert refused(ask(accounts, alice(requests_per_minute=0))).problem.retry_after_s is None
    assert refused(ask(accounts, Caller("b", limits=Limits(tokens_per_minute=0)), 1)).problem.retry_after_s is None
    assert refused(ask(accounts, Caller("c", limits=Limits(parallel=0)))).short == "parallel"


def test_the_same_key_as_another_object_goes_on_where_it_was() -> None:
    clocks = Clocks()
    accounts = clocks.accounts()
    running = [held(ask(accounts, alice(requests_per_minute=10, parallel=3))) for _ in range(3)]
    assert refused(ask(accounts, alice(requests_per_minute=10, parallel=3))).short == "parallel"
    # A change of its limits: what was used was used.
    changed = alice(requests_per_minute=5, parallel=6)
    held(ask(accounts, changed)).settle(tokens=0, nano_usd=0)
    held(ask(accounts, changed)).settle(tokens=0, nano_usd=0)
    assert refused(ask(accounts, changed)).short == "requests"
    # Without limits it is free, and what ends does no harm.
    held(ask(accounts, alice()))
    for hold in running:
        hold.settle(tokens=0, nano_usd=0)
    assert accounts.running("alice") == 0


def test_a_purse_that_was_handed_on_has_the_new_limits() -> None:
    accounts = Clocks().accounts()
    before = alice(parallel=1)
    held(ask(accounts, before))
    after = alice(parallel=2)
    after.purse = before.purse
    held(ask(accounts, after))
    refused(ask(accounts, after))
    without = alice()
    without.purse = after.purse
    held(ask(accounts, without))


def test_a_caller_of_another_treasury_is_at_home_in_each() -> None:
    caller = alice(parallel=1)
    first, second = Clocks().accounts(), Clocks().accounts()
    for _ in range(2):
        held(ask(first, caller)).settle(tokens=0, nano_usd=0)
        held(ask(second, caller)).settle(tokens=0, nano_usd=0)
    held(ask(first, caller))
    held(ask(second, caller))
    refused(ask(first, caller))


@given(
    st.integers(1, 100),
    st.lists(st.tuples(st.integers(0, 40 * 10**9), st.integers(0, 30), st.integers(0, 30)), max_size=60),
)
def test_no_minute_gives_more_than_a_full_bucket_and_its_refill(limit: int, steps: list[tuple[int, int, int]]) -> None:
    clocks = Clocks()
    accounts, caller = clocks.accounts(), alice(tokens_per_minute=limit)
    used: list[tuple[int, int]] = []
    for wait, tokens, came_to in steps:
        clocks.mono += wait
        found = ask(accounts, caller, tokens)
        if isinstance(found, Hold):
            found.settle(tokens=min(came_to, tokens), nano_usd=0)
            used.append((clocks.mono, min(came_to, tokens)))
        elif found.problem.retry_after_s is not None:
            # Whoever waits as long as was said is admitted.
            clocks.on(found.problem.retry_after_s)
            held(ask(accounts, caller, tokens)).settle(tokens=0, nano_usd=0)
    for start, _ in used:
        within = sum(tokens for at, tokens in used if start <= at < start + 60 * 10**9)
        assert within <= 2 * limit
