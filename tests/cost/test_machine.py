"""What tokens cost on a machine, and how many break even with a vendor."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from pressroom.cost import BreakEven, apportioned, best_nano_a_million, capacity, machine_nano, per_million

USD = 10**9


@given(st.integers(0, 10**15), st.lists(st.integers(0, 10**12), max_size=30))
def test_parts_are_together_the_whole_and_each_within_one_of_its_share(whole: int, weights: list[int]) -> None:
    parts = apportioned(whole, weights)
    total = sum(weights)
    if not total:
        assert parts == [0] * len(weights)
        return
    assert sum(parts) == whole
    assert all(abs(part - Fraction(whole * weight, total)) < 1 for part, weight in zip(parts, weights, strict=True))


def test_what_a_machine_costs() -> None:
    assert machine_nano(3_600.0, 0.1) == USD // 10
    assert machine_nano(0.0, 5.0) == 0
    # 0.1 + 0.2 of an hour: the digits that were written count.
    assert machine_nano(36_000.0, 0.3) == 3 * USD
    assert machine_nano(1.0, 1.0) == -(-USD // 3_600)


def test_a_million_tokens() -> None:
    assert per_million(6 * USD, 2_000_000) == 3 * USD
    assert per_million(1, 3) == 333_334
    assert per_million(5, 0) is None
    # 200 tokens a second are 720,000 an hour: 0.50 USD an hour are 0.694… USD a million.
    assert best_nano_a_million(200.0, 0.5) == 694_444_445
    assert best_nano_a_million(0.0, 0.5) is None


def test_what_one_machine_can_make() -> None:
    # A quarter of the tokens is answered: 100 a second are 400 with the prompts.
    assert capacity(100.0, hours=1, tokens=4_000, completion_tokens=1_000) == 1_440_000
    assert capacity(100.0, hours=1, tokens=4_000, completion_tokens=0) is None


def even(*, vendor_usd: float, tokens: int, month_usd: int, most: int | None) -> BreakEven:
    return BreakEven(
        vendor="v", vendor_nano=int(vendor_usd * USD), tokens=tokens, month_nano=month_usd * USD, capacity=most
    )


def test_where_both_cost_the_same() -> None:
    # A vendor at 2 USD a million and a machine at 365 USD a month: 182.5 million tokens.
    one = even(vendor_usd=2, tokens=1_000_000, month_usd=365, most=200_000_000)
    assert one.vendor_nano_a_million == 2 * USD
    assert one.tokens_a_month == 182_500_000 and one.reached is True
    assert even(vendor_usd=2, tokens=1_000_000, month_usd=365, most=182_499_999).reached is False
    assert even(vendor_usd=2, tokens=1_000_000, month_usd=365, most=None).reached is None


def test_a_vendor_that_asks_nothing_is_never_dearer() -> None:
    one = even(vendor_usd=0, tokens=1_000_000, month_usd=365, most=10**12)
    assert one.tokens_a_month is None and one.reached is False


@given(
    st.integers(1, 10**14), st.integers(1, 10**12), st.integers(1, 10**14), st.one_of(st.none(), st.integers(0, 10**15))
)
def test_it_is_the_first_number_of_tokens_at_which_the_vendor_costs_as_much(
    vendor_nano: int, tokens: int, month_nano: int, most: int | None
) -> None:
    one = BreakEven(vendor="v", vendor_nano=vendor_nano, tokens=tokens, month_nano=month_nano, capacity=most)
    found = one.tokens_a_month
    assert found is not None
    assert Fraction(found * vendor_nano, tokens) >= month_nano > Fraction((found - 1) * vendor_nano, tokens)
    assert one.reached is (None if most is None else found <= most)
