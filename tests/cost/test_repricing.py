"""A wrong price repaired: exactly, once, in pieces, and over a long ledger."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pressroom.cost import Price, Repriced, Repricing, Spending, Tier, together
from pressroom.gateway.ledger import Counted, correct, spent
from pressroom.kernel import Workspace

from .filling import DAY, NOON, fill

RIGHT = Price.parse({"prompt": "0.15", "completion": "0.60", "cached": "0.075"})
DIGEST = "sha256-" + "0" * 64


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open(tmp_path) as opened:
        yield opened


def always(price: Price | None) -> Any:
    return lambda deployment, branch, digest, day: price


def repaired(workspace: Workspace, price_of: Any, **which: Any) -> tuple[Repriced, int]:
    """What was found, and how many rows the ledger corrected."""
    which = {"since": 0.0, "until": 1e11, "digests": [DIGEST]} | which
    repricing = Repricing(workspace, price_of, **which)
    rows = 0
    for batch in repricing.batches():
        rows += correct(workspace, {one.id: one.after for one in batch}).rows
    return repricing.done, rows


def total(workspace: Workspace) -> int:
    return together(Spending(workspace, since=0, until=1e11).by("day")).nano_usd


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**5), st.integers(0, 10**12)),
        min_size=1,
        max_size=30,
    ),
    st.lists(st.integers(0, 10**8), min_size=1, max_size=3),
)
def test_every_repair_is_exact_and_the_same_one_twice_changes_nothing(
    workspace: Workspace, requests: list[tuple[int, int, int, int]], rates: list[int]
) -> None:
    fill(workspace, [])
    with workspace.database.begin() as connection:
        for name in ("ledger", "spending"):
            connection.execute(sa.text(f"delete from {name}"))
    fill(
        workspace,
        [
            {"prompt_tokens": prompt, "cached_tokens": cached, "completion_tokens": completion, "nano_usd": paid}
            for prompt, cached, completion, paid in requests
        ],
    )
    for rate in rates:
        price = Price(prompt=rate, completion=2 * rate, cached=rate // 3)
        right = sum(
            price.nano(prompt=prompt, completion=completion, cached=cached)
            for prompt, cached, completion, _ in requests
        )
        before = total(workspace)
        done, rows = repaired(workspace, always(price))
        assert total(workspace) == right
        assert done.requests == len(requests) and rows == done.wrong
        assert done.after - done.before == right - before
        # What budgets go by was changed with the rows.
        assert sum(line.nano_usd for line in spent(workspace, periods=["total"]) if line.scope == "all") == right
        again, rows = repaired(workspace, always(price))
        assert (again.wrong, again.before, again.after, rows) == (0, 0, 0, 0)


def test_each_request_has_the_price_of_its_day(workspace: Workspace) -> None:
    fill(workspace, [{"at": NOON + DAY * number, "completion_tokens": 1_000_000} for number in range(3)])
    asked: list[tuple[str, str, str, date]] = []

    def price_of(deployment: str, branch: str, digest: str, day: date) -> Price:
        asked.append((deployment, branch, digest, day))
        return Price(completion=day.day)

    repaired(workspace, price_of)
    assert total(workspace) == (20 + 21 + 22) * 1_000
    assert asked[0] == ("mini", "", DIGEST, date(2026, 11, 20))


def test_only_what_was_asked_for_and_what_an_engine_worked_on(workspace: Workspace) -> None:
    other = "sha256-" + "1" * 64
    fill(
        workspace,
        [
            {"completion_tokens": 1_000},
            {"completion_tokens": 1_000, "digest": other},
            {"completion_tokens": 1_000, "digest": other, "model": "chat"},
            {"completion_tokens": 1_000, "cache": "exact"},
            {"completion_tokens": 0, "counted": Counted.NONE, "digest": ""},
            {"completion_tokens": 1_000, "at": NOON + DAY},
        ],
    )
    price = Price(completion=1_000)
    done, rows = repaired(workspace, always(price), until=NOON + DAY)
    assert (done.requests, rows, total(workspace)) == (1, 1, 1_000)
    done, rows = repaired(workspace, always(price), until=NOON + DAY, digests=[], deployment="mini")
    assert (done.requests, rows, total(workspace)) == (2, 1, 2_000)
    done, rows = repaired(workspace, always(price), digests=[DIGEST, other], deployment="nobody")
    assert (done.requests, rows, total(workspace)) == (4, 2, 4_000)


def test_what_nobody_can_tell_stays_as_it_is(workspace: Workspace) -> None:
    fill(
        workspace, [{"nano_usd": 5, "prompt_tokens": 1}, {"id": "twice", "nano_usd": 7}, {"id": "twice", "nano_usd": 7}]
    )
    done, rows = repaired(workspace, always(None))
    assert (done.unknown, done.ambiguous, rows, total(workspace)) == (1, 2, 0, 19)
    done, rows = repaired(workspace, always(RIGHT))
    assert (done.ambiguous, done.wrong, rows, total(workspace)) == (2, 1, 1, 150 + 14)


def test_a_repair_that_was_stopped_goes_on(workspace: Workspace) -> None:
    fill(workspace, [{"prompt_tokens": 1_000} for _ in range(2_500)])
    repricing = Repricing(workspace, always(RIGHT), since=0, until=1e11, digests=[DIGEST])
    assert repricing.count() == 2_500
    first = next(repricing.batches())
    correct(workspace, {one.id: one.after for one in first})
    assert len(first) == 1_000 and total(workspace) == 1_000 * 150_000
    done, rows = repaired(workspace, always(RIGHT))
    assert (done.requests, done.wrong, rows) == (2_500, 1_500, 1_500)
    assert total(workspace) == 2_500 * 150_000


def test_what_is_added_meanwhile_is_left_alone(workspace: Workspace) -> None:
    fill(workspace, [{"id": "before", "prompt_tokens": 1_000}])
    repricing = Repricing(workspace, always(RIGHT), since=0, until=1e11, digests=[DIGEST])
    fill(workspace, [{"id": "after", "prompt_tokens": 1_000}])
    assert [one.id for batch in repricing.batches() for one in batch] == ["before"]


def test_steps_count(workspace: Workspace) -> None:
    fill(workspace, [{"id": "short", "prompt_tokens": 10}, {"id": "long", "prompt_tokens": 11}])
    price = Price(prompt=1_000, tiers=(Tier(above=10, prompt=2_000, completion=0, cached=2_000),))
    repricing = Repricing(workspace, always(price), since=0, until=1e11, digests=[DIGEST])
    assert {one.id: one.after for batch in repricing.batches() for one in batch} == {"short": 10, "long": 22}


def test_what_several_engines_worked_on_is_right_in_parts(workspace: Workspace) -> None:
    price = Price(prompt=1, completion=1, request_nano=10)
    part = price.nano(prompt=1, completion=1)
    three = {"prompt_tokens": 3, "completion_tokens": 3, "tries": 3}
    fill(
        workspace,
        [
            {**three, "id": "answers", "nano_usd": 3 * part},
            {**three, "id": "one failed", "nano_usd": price.nano(prompt=3, completion=3)},
            {**three, "id": "wrong", "nano_usd": 3 * part + 1},
            {**three, "id": "once", "nano_usd": 3 * part, "tries": 1},
        ],
    )
    repricing = Repricing(workspace, always(price), since=0, until=1e11, digests=[DIGEST])
    assert {one.id: one.after for batch in repricing.batches() for one in batch} == {"wrong": 11, "once": 11}
    tiered = Price(prompt=1, tiers=(Tier(above=2, prompt=2, completion=0, cached=2),))
    repricing = Repricing(workspace, always(tiered), since=0, until=1e11, digests=[DIGEST])
    assert {one.id for batch in repricing.batches() for one in batch} == {"once"} and repricing.done.ambiguous == 3


def test_a_workspace_without_a_ledger_has_nothing_to_repair(workspace: Workspace) -> None:
    done, rows = repaired(workspace, always(RIGHT))
    assert (done.requests, rows) == (0, 0)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_ledger(workspace: Workspace) -> None:
    fill(workspace, [{"prompt_tokens": 1_000}])
    with workspace.database.reading() as connection:
        columns = [column["name"] for column in sa.inspect(connection).get_columns("ledger")]
    copied = ", ".join(f'"{name}"' for name in columns if name not in ("number", "id", "corrects"))
    with workspace.database.begin() as connection:
        for power in range(16):  # doubled so often: 65,536 rows
            connection.execute(
                sa.text(f"insert into ledger (id, {copied}) select id || '-{power}', {copied} from ledger")
            )
    repricing = Repricing(workspace, always(RIGHT), since=0, until=1e11, digests=[DIGEST])
    batches = repricing.batches()
    next(batches)
    tracemalloc.start()
    try:
        for _ in batches:
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert repricing.done.wrong == 1 << 16
    assert peak < 16 << 20
