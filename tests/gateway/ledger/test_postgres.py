"""The same on PostgreSQL: rows, sums, what does not fit, two that fold at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.gateway.ledger import Filter, JournalLedger, Rows, correct, export, open_ledger
from pressroom.kernel import Workspace

from .books import NOON, open_one, row, running, spending, summed, table
from .test_fold import killed

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path, postgres_url: str) -> Iterator[Workspace]:
    environ = {"PRESSROOM_DATABASE": postgres_url, "PRESSROOM_LEDGER_SEGMENT_BYTES": "65536"}
    with Workspace.open(tmp_path, environ=environ | {"PRESSROOM_LEDGER_CONTENT": "full"}) as made:
        yield made


def test_a_day_of_a_ledger(place: Workspace, tmp_path: Path) -> None:
    ledger = running(place)
    for number in range(1_000):
        open_one(ledger, f"r{number}")
        ledger.append(
            row(f"r{number}", user="alice" if number < 10 else "", prompt={"prompt": "a\0b"}, verdicts=["secret"])
        )
    ledger.append(row("odd", asked=10**30, tag="\0", key="k" * 900, status=2**50, first_s=float("nan")))
    open_one(ledger, "lost")
    assert ledger.flush(60)
    assert table(place)[0]["prompt_text"] == "ab"
    killed(ledger)
    after = open_ledger(place)
    assert [each.id for each in after.recover()] == ["lost"]
    after.stop()
    rows = table(place)
    assert len(rows) == 1_002
    assert spending(place) == summed(rows)
    assert correct(place, {f"r{number}": 9_999 for number in range(600)}).rows == 600
    assert correct(place, {"r5": 9_999}).unchanged == 1
    assert spending(place) == summed(table(place))
    assert Rows(place).forget("alice") == 20  # corrections are rows of theirs, too
    assert len(Rows(place).get("r5")) == 2
    assert Rows(place).list(Filter(since=NOON - 1, outcome="lost"))[0].id == "lost"
    assert Rows(place).state().rows == 1_602
    assert export(place, tmp_path / "all.parquet") == 1_602


def test_workers_that_fold_at_once(place: Workspace) -> None:
    ledgers = [running(place, worker=number) for number in range(3)]

    def write(ledger: JournalLedger, worker: int) -> None:
        for number in range(700):
            # Names in another order with each worker: whoever added them in that order would wait for each other.
            name = f"k{(number if worker % 2 else -number) % 50}"
            assert ledger.append(row(f"{worker}-{number}", key=name))
        assert ledger.flush(60)

    threads = [threading.Thread(target=write, args=(each, worker)) for worker, each in enumerate(ledgers)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert all(ledger.stop() for ledger in ledgers)
    rows = table(place)
    assert len({each["id"] for each in rows}) == len(rows) == 2_100
    assert spending(place) == summed(rows)
