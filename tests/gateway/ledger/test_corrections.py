"""Costs that are put right: rows of their own, the sums of their time with them, the same repair twice nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.gateway.ledger import Counted, Rows, correct
from pressroom.kernel import PressroomError, Workspace

from .books import NOON, row, running, spending, summed, table, workspace


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workspace]:
    with workspace(tmp_path) as made:
        ledger = running(made)
        for number in range(1_200):
            ledger.append(row(f"r{number:04d}", at=NOON - 86_400 * (number % 3), nano_usd=1_000))
        ledger.append(row("hit", cache="exact", nano_usd=0))
        ledger.append(row("refused", counted=Counted.NONE, asked=0, answered=0, nano_usd=0))
        assert ledger.stop()
        yield made


def test_a_cost_is_put_right_once(place: Workspace) -> None:
    costs = {f"r{number:04d}": 1_500 for number in range(1_200)} | {"hit": 9, "refused": 9, "gone": 9}
    done = correct(place, costs)
    assert (done.rows, done.unchanged, done.unknown, done.nano_usd) == (1_200, 2, ("gone",), 600_000)
    rows = table(place)
    assert len(rows) == 2_402
    assert {each["id"] for each in rows if each["kind"] == "request"} == costs.keys() - {"gone"}
    assert spending(place) == summed(rows)
    assert spending(place)["all", "", "total"] == (1_201 * 120 - 120, 1_800_000)
    assert spending(place)["key", "ci", "2026-11-20"][1] == 400 * 1_500
    again = correct(place, costs)
    assert (again.rows, again.nano_usd) == (0, 0)
    back = correct(place, {"r0000": 1_000, "r0001": 0})
    assert (back.rows, back.nano_usd) == (2, -500 - 1_500)
    assert spending(place) == summed(table(place))
    entry, first, second = Rows(place).get("r0001")
    assert (entry.nano_usd, first.nano_usd, second.nano_usd) == (1_000, 500, -1_500)
    assert (first.corrects, first.at, first.key, first.kind) == ("r0001", entry.at, "ci", "correction")
    assert first.id != second.id and first.prompt_tokens == 0
    assert first.recorded >= entry.recorded


def test_two_repairs_at_once(place: Workspace) -> None:
    costs = {f"r{number:04d}": 3_000 for number in range(1_200)}
    threads = [threading.Thread(target=correct, args=(place, costs)) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert spending(place)["all", "", "total"][1] == 1_200 * 3_000
    assert spending(place) == summed(table(place))


@pytest.mark.parametrize("cost", [-1, 1 << 70])
def test_what_is_no_cost_is_refused(place: Workspace, cost: int) -> None:
    before = table(place)
    with pytest.raises(PressroomError, match="is no cost of the request 'r0001'"):
        correct(place, {"r0000": 5, "r0001": cost})
    assert table(place) == before
