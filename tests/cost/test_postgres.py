"""The same sums, prices and repairs on PostgreSQL, whose types and divisions are others."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from pressroom.cost import GROUPS, Powered, Price, Prices, Repricing, Spending, Tier, together
from pressroom.gateway.ledger import correct
from pressroom.kernel import Workspace

from .filling import DAY, NOON, fill

pytestmark = pytest.mark.slow


@pytest.fixture
def workspace(postgres_url: str, tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "pressroom.toml").write_text(f'database = "{postgres_url}"\n')
    with Workspace.open(tmp_path) as opened:
        yield opened


def test_sums_prices_and_repairs(workspace: Workspace) -> None:
    requests = [
        {
            "at": NOON + DAY * (number % 3) + 43_199.5 * (number % 2),
            "key": f"k{number % 4}",
            "language": "en" if number % 2 else "",
            "engine": "vendor" if number % 5 else "llamacpp",
            "prompt_tokens": 999_983 * number,
            "cached_tokens": 1_999 * number,
            "completion_tokens": 49_999 * number,
            "nano_usd": number,
            "total_s": 1.5,
        }
        for number in range(40)
    ]
    fill(workspace, requests)
    price = Price(
        prompt=10**9, completion=10**9, cached=7, tiers=(Tier(above=10**7, prompt=10**9, completion=10**9, cached=8),)
    )
    for group in GROUPS:
        sums = Spending(workspace, since=0, until=1e11)
        assert together(sums.by(group)).nano_usd == sum(range(40))
        worth = [
            price.nano(
                prompt=-(-int(one["prompt_tokens"]) * 3 // 2),
                cached=-(-int(one["cached_tokens"]) * 3 // 2),
                completion=-(-int(one["completion_tokens"]) * 3 // 2),
            )
            for one in requests
        ]
        assert sum(one.replayed_nano_usd for one in sums.at(price, group, ratio=Fraction(3, 2))) == sum(worth)
    days = [(one.name, one.requests) for one in Spending(workspace, since=0, until=1e11).by("day")]
    assert [name for name, _ in days] == ["2026-11-20", "2026-11-21", "2026-11-22"]
    assert sum(one.microseconds for one in Spending(workspace, since=0, until=1e11).own()) == 8 * 1_500_000

    for _ in range(2):
        repricing = Repricing(workspace, lambda *_: price, since=0, until=1e11, digests=["sha256-" + "0" * 64])
        for batch in repricing.batches():
            correct(workspace, {one.id: one.after for one in batch})
        assert repricing.done.requests == 40
    assert repricing.done.wrong == 0
    right = sum(
        price.nano(prompt=one["prompt_tokens"], cached=one["cached_tokens"], completion=one["completion_tokens"])  # type: ignore[arg-type]
        for one in requests
    )
    assert together(Spending(workspace, since=0, until=1e11).by("key")).nano_usd == right
    assert Spending(workspace, since=0, until=1e11).unpaid() == []


def test_prices_and_hours(workspace: Workspace) -> None:
    prices = Prices(workspace)
    assert prices.state()[0] == 0
    prices.set("here/*", Price(prompt=10**9, completion=1, request_nano=10**12))
    assert prices.find("here/anything") is not None and prices.state()[0] == 1
    clocks = [NOON, 0.0]
    powered = Powered(workspace, clock=lambda: clocks[0], running=lambda: clocks[1])
    for _ in range(3):
        powered.beat()
        clocks = [clocks[0] + 60, clocks[1] + 60]
    assert powered.seconds(0, 1e11) == 120
