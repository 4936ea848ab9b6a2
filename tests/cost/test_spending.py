"""Sums over the ledger: the parts are the whole, and a database prices a row as `Price.nano` does."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pressroom.cost import GROUPS, Price, Spending, Tier, together
from pressroom.gateway.ledger import Counted, correct
from pressroom.kernel import Workspace

from .filling import DAY, NOON, fill

_names = st.sampled_from(["", "a", "b"])
_requests = st.fixed_dictionaries(
    {
        "at": st.sampled_from([NOON - DAY, NOON, NOON + 43_199, NOON + 43_200, NOON + DAY]),
        "key": _names,
        "team": _names,
        "model": st.sampled_from(["mini", "chat"]),
        "branch": _names,
        "tag": _names,
        "user": _names,
        "ref": st.sampled_from(["mini:1", "smollm2:1"]),
        "engine": st.sampled_from(["vendor", "llamacpp", "vllm"]),
        "language": st.sampled_from(["", "en", "de"]),
        "cache": st.sampled_from(["", "", "", "exact"]),
        "prompt_tokens": st.integers(0, 10**6),
        "completion_tokens": st.integers(0, 10**5),
        "cached_tokens": st.integers(0, 2 * 10**6),
        "nano_usd": st.integers(0, 10**12),
        "total_s": st.floats(0, 100),
    }
)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open(tmp_path) as opened:
        yield opened


def spending(workspace: Workspace, since: float = 0.0, until: float = 1e11) -> Spending:
    return Spending(workspace, since=since, until=until)


def refilled(workspace: Workspace, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A ledger with these requests and no others."""
    fill(workspace, [])
    with workspace.database.begin() as connection:
        connection.execute(sa.text("delete from ledger"))
    fill(workspace, requests)
    return requests


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_requests, max_size=25))
def test_the_parts_are_the_whole_however_it_is_parted(workspace: Workspace, requests: list[dict[str, Any]]) -> None:
    refilled(workspace, requests)
    worked = [one for one in requests if not one["cache"]]
    for group in GROUPS:
        found = spending(workspace).by(group)
        total = together(found)
        assert len({one.name for one in found}) == len(found)
        assert total.requests == len(requests) and total.cached == len(requests) - len(worked)
        assert total.nano_usd == sum(one["nano_usd"] for one in requests)
        assert total.prompt_tokens == sum(one["prompt_tokens"] for one in worked)
        assert total.completion_tokens == sum(one["completion_tokens"] for one in worked)
        assert total.own_tokens + total.vendor_tokens == total.tokens
        assert total.vendor_nano_usd == sum(one["nano_usd"] for one in worked if one["engine"] == "vendor")
    own = spending(workspace).own()
    assert sum(one.tokens for one in own) == together(spending(workspace).by("key")).own_tokens


_rates = st.integers(0, 10**9)
_price = st.builds(
    lambda prompt, more, completion, request, above: Price(
        prompt=prompt,
        completion=completion,
        cached=prompt // 2,
        request_nano=request,
        tiers=(Tier(above=above, prompt=prompt + more, completion=completion + more, cached=prompt // 2 + more // 2),)
        if above
        else (),
    ),
    _rates, _rates, _rates, _rates, st.integers(0, 10**6),
)  # fmt: skip


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(_requests, max_size=15),
    _price,
    st.one_of(st.just(Fraction(1)), st.fractions(Fraction(1, 100), 100, max_denominator=10_000)),
)
def test_the_database_prices_each_row_as_a_price_does(
    workspace: Workspace, requests: list[dict[str, Any]], price: Price, ratio: Fraction
) -> None:
    refilled(workspace, requests)

    def scaled(tokens: int) -> int:
        return -(-tokens * ratio.numerator // ratio.denominator)

    def worth(one: dict[str, Any]) -> int:
        return price.nano(
            prompt=scaled(one["prompt_tokens"]),
            completion=scaled(one["completion_tokens"]),
            cached=scaled(one["cached_tokens"]),
        )

    for group, field in (("key", "key"), ("deployment", "model"), ("language", "language")):
        for found in spending(workspace).at(price, group, ratio=ratio):
            these = [one for one in requests if one[field] == found.name and not one["cache"]]
            assert found.requests == len(these) and found.nano_usd == sum(one["nano_usd"] for one in these)
            assert found.replayed_nano_usd == sum(worth(one) for one in these)
    own = spending(workspace).at(price, "key", ratio=ratio, own_only=True)
    here = [one for one in requests if not one["cache"] and one["engine"] != "vendor"]
    assert sum(one.replayed_nano_usd for one in own) == sum(worth(one) for one in here)


def test_days_begin_at_midnight_utc_and_a_span_has_its_first_moment_only(workspace: Workspace) -> None:
    midnight = NOON + 43_200
    fill(workspace, [{"at": at} for at in (midnight - 0.001, midnight, midnight + DAY - 1)])
    assert [(one.name, one.requests) for one in spending(workspace).by("day")] == [("2026-11-20", 1), ("2026-11-21", 2)]
    assert together(spending(workspace, midnight, midnight + DAY - 1).by("day")).requests == 1
    assert datetime.fromtimestamp(midnight, UTC).date() == date(2026, 11, 21)


def test_branches_and_versions_have_their_names(workspace: Workspace) -> None:
    fill(
        workspace,
        [{"branch": "", "ref": "a:1"}, {"branch": "canary", "ref": "a:2"}, {"branch": "canary", "ref": "a:2"}],
    )
    assert {one.name: one.requests for one in spending(workspace).by("branch")} == {"mini": 1, "mini/canary": 2}
    assert {one.name: one.requests for one in spending(workspace).by("model")} == {"a:1": 1, "a:2": 2}


def test_a_workspace_that_never_answered_has_no_sums(workspace: Workspace) -> None:
    nothing = spending(workspace)
    assert [nothing.by(group) for group in GROUPS] == [[]] * len(GROUPS)
    assert nothing.own() == nothing.unpaid() == nothing.at(Price(prompt=1), "day") == []
    assert together([]).requests == 0


def test_what_was_corrected_is_in_the_sums_and_no_request_more(workspace: Workspace) -> None:
    request = {
        "prompt_tokens": 1_000,
        "completion_tokens": 10,
        "language": "en",
        "branch": "x",
        "ref": "a:1",
        "key": "k",
    }
    fill(workspace, [{**request, "id": "one", "nano_usd": 0}, {**request, "id": "two", "nano_usd": 500}])
    assert spending(workspace).unpaid() == [("mini", "x", "sha256-" + "0" * 64, 1)]
    correct(workspace, {"one": 700, "two": 300})
    assert spending(workspace).unpaid() == []
    for group in GROUPS:
        [found] = spending(workspace).by(group)
        assert (found.requests, found.nano_usd, found.vendor_nano_usd, found.tokens) == (2, 1_000, 1_000, 2_020)
    [replayed] = spending(workspace).at(Price(request_nano=10), "day")
    assert (replayed.requests, replayed.nano_usd, replayed.replayed_nano_usd) == (2, 1_000, 20)


def test_counts_that_cannot_be_do_not_overflow(workspace: Workspace) -> None:
    most = 1 << 52
    fill(
        workspace,
        [{"prompt_tokens": most, "completion_tokens": most, "cached_tokens": most, "counted": Counted.STATED}],
    )
    price = Price(prompt=10**9, completion=10**9, request_nano=1)
    [found] = spending(workspace).at(price, "day", ratio=Fraction(100))
    assert found.replayed_nano_usd == price.nano(prompt=2**31 - 1, completion=2**31 - 1)
