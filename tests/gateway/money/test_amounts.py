"""Amounts as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressroom.gateway.money import Budget, BudgetError, Period, Scope, Unit, parse_budget, parse_limit, parse_scope
from pressroom.gateway.money.amounts import MOST, amount_text, budget_text, short_text, written


@pytest.mark.parametrize(
    ("text", "amount", "unit", "period"),
    [
        ("5usd/day", 5 * 10**9, Unit.USD, Period.DAY),
        ("0.50 usd / month", 5 * 10**8, Unit.USD, Period.MONTH),
        ("100usd", 10**11, Unit.USD, Period.TOTAL),
        ("0usd/total", 0, Unit.USD, Period.TOTAL),
        ("0.000000001usd", 1, Unit.USD, Period.TOTAL),
        ("1.5000000000000000usd", 1_500_000_000, Unit.USD, Period.TOTAL),
        ("2M tokens/month", 2_000_000, Unit.TOKENS, Period.MONTH),
        ("1.25k tokens/day", 1250, Unit.TOKENS, Period.DAY),
        ("1B tokens", 10**9, Unit.TOKENS, Period.TOTAL),
        ("1 token", 1, Unit.TOKENS, Period.TOTAL),
    ],
)
def test_what_is_understood(text: str, amount: int, unit: Unit, period: Period) -> None:
    wanted = Budget(scope=Scope.KEY, name="alice", unit=unit, period=period, amount=amount)
    assert parse_budget("key:alice", text) == wanted


@pytest.mark.parametrize(
    ("text", "because"),
    [
        ("-5usd", "no sign"),
        ("+5usd", "no sign"),
        ("nan usd", "plain digits"),
        ("inf usd", "plain digits"),
        ("1e400usd", "plain digits"),
        ("1e2 usd", "plain digits"),
        ("5,000usd", "not grouped"),
        ("5_000usd", "not grouped"),
        ("5", "usd or tokens"),
        ("5/day", "usd or tokens"),
        ("", "no amount"),
        ("lots", "no amount"),
        ("٥usd", "no amount"),
        ("5 eur", "no amount"),
        ("5usd/week", "no period 'week'"),
        ("5Musd", "money has no 'M'"),
        ("0.0000000001usd", "finer"),
        ("1.5 tokens", "finer"),
        ("1.0001k tokens", "finer"),
        ("123456789012345678901234.5usd", "largest"),
        ("999999999999999999999999B tokens", "largest"),
        ("9" * 100_000 + "usd", "no amount"),
    ],
)
def test_what_is_not_understood_says_why(text: str, because: str) -> None:
    with pytest.raises(BudgetError) as error:
        parse_budget("all", text)
    assert because in error.value.message
    assert error.value.hint
    assert len(error.value.message) < 200


@pytest.mark.parametrize("whose", ["", "alice", "key:", "all:x", "ALL", "key:a b", "team:\n", "key:" + "x" * 300])
def test_whose(whose: str) -> None:
    assert parse_scope("deployment:Qwen/Qwen3-0.6B") == (Scope.DEPLOYMENT, "Qwen/Qwen3-0.6B")
    assert parse_scope("all") == (Scope.ALL, "")
    with pytest.raises(BudgetError):
        parse_scope(whose)


def test_kinds() -> None:
    assert parse_limit("usd/day") == (Unit.USD, Period.DAY)
    assert parse_limit("tokens") == (Unit.TOKENS, Period.TOTAL)
    for text in ("", "day", "usd/", "usd/hour", "5usd"):
        with pytest.raises(BudgetError):
            parse_limit(text)


@given(st.sampled_from(list(Unit)), st.sampled_from(list(Period)), st.data())
def test_what_is_written_is_read_again(unit: Unit, period: Period, data: st.DataObject) -> None:
    amount = data.draw(st.integers(0, MOST[unit]))
    budget = Budget(scope=Scope.TEAM, name="x", unit=unit, period=period, amount=amount)
    assert parse_budget("team:x", written(budget)) == budget


def test_for_people() -> None:
    assert amount_text(1_234_500_000_000, Unit.USD) == "1,234.50 USD"
    assert amount_text(-1, Unit.USD) == "-0.000000001 USD"
    assert amount_text(2_000_000, Unit.TOKENS) == "2,000,000 tokens"
    assert short_text(12_345_678_901, Unit.USD) == "12.3456 USD"
    assert short_text(12, Unit.USD) == "0.000000012 USD"
    budget = parse_budget("team:research", "2M tokens/month")
    assert budget_text(budget) == "the budget of team research, 2,000,000 tokens a month"
