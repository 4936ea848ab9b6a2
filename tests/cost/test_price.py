"""Prices as whole numbers: what they come to, that they bound, and what is refused."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressroom.cost import NANO, PICO_A_TOKEN, Price, PriceError, Tier, usd

_counts = st.integers(0, 10**7)
_rates = st.integers(0, 10**9)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    """Any price, with up to three tiers."""
    prompt = draw(_rates)
    steps = sorted(draw(st.sets(st.integers(1, 10**6), max_size=3)))
    price = Price(
        prompt=prompt, completion=draw(_rates), cached=draw(st.integers(0, prompt)), request_nano=draw(_rates)
    )
    last = Tier(above=0, prompt=price.prompt, completion=price.completion, cached=price.cached)
    tiers = []
    for above in steps:
        dearer = last.prompt + draw(_rates)
        last = Tier(
            above=above,
            prompt=dearer,
            completion=last.completion + draw(_rates),
            cached=draw(st.integers(last.cached, dearer)),
        )
        tiers.append(last)
    return Price(
        prompt=prompt,
        completion=price.completion,
        cached=price.cached,
        request_nano=price.request_nano,
        tiers=tuple(tiers),
    )


def test_what_a_request_comes_to() -> None:
    price = Price.parse({"prompt": "0.15", "completion": "0.60", "cached": "0.075"})
    assert price.nano(prompt=1_000_000, completion=0) == 150_000_000
    assert price.nano(prompt=1_000_000, completion=1_000_000, cached=400_000) == 90_000_000 + 30_000_000 + 600_000_000
    # One token is 0.15 micro-dollars, and half of a nano-dollar is a whole one.
    assert price.nano(prompt=1, completion=0) == 150
    assert Price(prompt=1).nano(prompt=1, completion=0) == 1
    assert Price.parse({"prompt": 0, "completion": 0, "request": "0.012"}).nano(prompt=9, completion=9) == 12_000_000


@given(prices(), _counts, _counts, _counts)
def test_it_is_the_exact_amount_rounded_up_once(price: Price, prompt: int, completion: int, cached: int) -> None:
    cached = min(cached, prompt)
    rate = next((tier for tier in reversed(price.tiers) if prompt > tier.above), price)
    exact = Fraction((prompt - cached) * rate.prompt + cached * rate.cached + completion * rate.completion, 1_000)
    assert price.nano(prompt=prompt, completion=completion, cached=cached) == price.request_nano + math.ceil(exact)


@given(prices(), _counts, _counts, _counts, _counts, _counts)
def test_the_price_of_a_bound_is_a_bound_of_the_price(
    price: Price, prompt: int, more: int, completion: int, longer: int, cached: int
) -> None:
    most = price.nano(prompt=prompt + more, completion=completion + longer)
    assert price.nano(prompt=prompt, completion=completion, cached=cached) <= most


@given(prices(), st.lists(st.tuples(_counts, _counts), max_size=20))
def test_requests_one_by_one_come_to_no_less_than_their_sum(price: Price, asked: list[tuple[int, int]]) -> None:
    flat = Price(prompt=price.prompt, completion=price.completion)
    parts = sum(flat.nano(prompt=prompt, completion=completion) for prompt, completion in asked)
    whole = flat.nano(prompt=sum(one[0] for one in asked), completion=sum(one[1] for one in asked))
    assert whole <= parts <= whole + len(asked)


def test_a_cache_that_holds_more_than_the_prompt_makes_nothing_cheaper() -> None:
    price = Price(prompt=10_000, completion=0, cached=1_000)
    assert price.nano(prompt=10, completion=0, cached=10**9) == price.nano(prompt=10, completion=0, cached=10) == 10
    tiered = Price(prompt=10_000, cached=1_000, tiers=(Tier(above=5, prompt=20_000, completion=0, cached=2_000),))
    assert tiered.nano(prompt=10, completion=0, cached=10**9) == 20


def test_a_price_without_one_for_cached_tokens_makes_them_no_gift() -> None:
    assert Price(prompt=10_000).nano(prompt=10, completion=0, cached=10) == 100
    assert Price(prompt=10_000, cached=0).nano(prompt=10, completion=0, cached=10) == 0


def test_free_is_what_never_costs() -> None:
    assert Price().free and Price(cached=0).free
    assert not Price(completion=1).free and not Price(request_nano=1).free
    assert not Price(tiers=(Tier(above=10, prompt=1, completion=1, cached=1),)).free


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": -1},
        {"completion": -1},
        {"prompt": 1, "cached": 2},
        {"prompt": 2, "tiers": (Tier(above=10, prompt=1, completion=0, cached=1),)},
        {"prompt": 2, "tiers": (Tier(above=-1, prompt=2, completion=0, cached=2),)},
        {"prompt": 1, "completion": 2, "tiers": (Tier(above=10, prompt=2, completion=1, cached=1),)},
        {"prompt": 2, "tiers": (Tier(above=10, prompt=3, completion=0, cached=1),)},
    ],
)
def test_what_would_not_bound_is_no_price(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"price|tier"):
        Price(**wrong)


def test_numbers_count_as_they_are_written() -> None:
    for written in ("0.15", 0.15, Decimal("0.15"), " 0.150 ", "15e-2"):
        assert Price.parse({"prompt": written, "completion": 0}).prompt == 150_000
    assert Price.parse({"prompt": 3, "completion": 15}).completion == 15 * PICO_A_TOKEN
    assert Price.parse({"prompt": "0.000001", "completion": "0"}).prompt == 1
    # 0.1 + 0.2 is not 0.3 in binary, and says so.
    with pytest.raises(PriceError, match="finer"):
        Price.parse({"prompt": 0.1 + 0.2, "completion": 0})


@pytest.mark.parametrize(
    "value",
    ["", "free", "NaN", "sNaN", "inf", "-inf", "-0.1", -1, True, None, [], {}, "1e999999999", "1" * 5_000, "0x10",
     1e300, float("nan"), "1001", "0.0000001", 1_000.000_001, "0.15.1", "1,5", b"1", 1j],
)  # fmt: skip
def test_what_is_no_price_is_refused_with_what_it_is(value: Any) -> None:
    with pytest.raises(PriceError) as caught:
        Price.parse({"prompt": value, "completion": "0"})
    assert "prompt" in caught.value.message and caught.value.hint


@given(st.one_of(st.text(max_size=30), st.floats(), st.integers(), st.decimals(), st.booleans()))
def test_any_value_is_a_price_or_refused(value: Any) -> None:
    try:
        price = Price.parse({"prompt": value, "completion": value, "request": value})
    except PriceError:
        return
    assert 0 <= price.prompt == price.completion == price.cached <= 1_000 * PICO_A_TOKEN
    assert 0 <= price.request_nano <= 1_000 * NANO


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"prompt": 1}, "completion"),
        ({}, "prompt and completion"),
        ({"prompt": 1, "completion": 1, "promt": 1}, "promt"),
        ({"prompt": 1, "completion": 1, "cached": 2}, "more than prompt"),
        ([1, 2], "is"),
        ("0.15", "is"),
    ],
)
def test_what_is_missing_or_too_much_is_named(asked: Any, says: str) -> None:
    with pytest.raises(PriceError, match=says):
        Price.parse(asked)


def test_other_classes_of_service_have_their_price() -> None:
    fast, slow = Price(prompt=30, completion=90), Price(prompt=5, completion=10)
    price = Price(prompt=10, completion=20, services=(("priority", fast), ("flex", slow)))
    assert price.at_service("") is price and price.at_service("default") is price
    assert price.at_service("priority") == fast and price.at_service("flex") == slow
    # One that nobody knows, and `auto`, which the vendor decides: the dearest.
    assert price.at_service("auto") == fast and price.at_service("new") == fast
    plain = Price(prompt=1)
    assert plain.at_service("priority") is plain


@given(st.integers(0, 10**15))
def test_dollars_are_written_exactly(nano: int) -> None:
    text = usd(nano)
    assert Decimal(text) * NANO == nano and "E" not in text


def test_it_reads_as_it_was_written() -> None:
    asked = {"prompt": "0.15", "completion": "0.6", "cached": "0.075", "request": "0.012"}
    shown = Price.parse(asked, source="here", since="2026-01-01").as_dict()
    assert shown == asked | {"source": "here", "since": "2026-01-01"}
