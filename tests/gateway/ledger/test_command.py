"""`press ledger`, as scripts and as people use it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pressroom.cli.ledger import ledger as command
from pressroom.gateway.ledger import Counted, Outcome, correct
from pressroom.kernel import NotFoundError, StoreError, Workspace, WorkspaceError

from .books import NOON, row, running, unfolded, workspace


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.chdir(tmp_path)
    with workspace(tmp_path) as made:
        ledger = running(made)
        ledger.append(row("req_a1", user="alice", verdicts=["secret"], tag="\x1b[31mred"))
        ledger.append(row("req_a2", at=NOON + 60, model="big", branch="vendor", nano_usd=1_234_567_890))
        failed = {"status": 502, "outcome": Outcome.FAILED, "counted": Counted.NONE}
        ledger.append(row("req_b1", at=NOON + 3_600, key="other", team="", asked=0, answered=0, nano_usd=0, **failed))
        ledger.append(row("req_b2", at=NOON + 7_200, cache="exact", nano_usd=0))
        assert ledger.stop()
        yield made


def press(*args: str) -> Result:
    return CliRunner().invoke(command, [*args])


def said(*args: str) -> Any:
    result = press(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_list(place: Workspace) -> None:
    assert [each["id"] for each in said("list")] == ["req_b2", "req_b1", "req_a2", "req_a1"]
    assert [each["id"] for each in said("list", "--limit", "1")] == ["req_b2"]
    for arguments, wanted in (
        (("--key", "other"), ["req_b1"]),
        (("--team", "search", "--model", "big"), ["req_a2"]),
        (("--user", "alice"), ["req_a1"]),
        (("--user", "bob"), []),
        (("--outcome", "failed"), ["req_b1"]),
        (("--since", "2026-11-21T12:01", "--until", "2026-11-21T14:00"), ["req_b1", "req_a2"]),
        (("--until", "2026-11-21T12:01:00+00:00"), ["req_a1"]),
        (("--since", "2026-11-22"), []),
    ):
        assert [each["id"] for each in said("list", *arguments)] == wanted, arguments
    text = press("list").stdout
    assert "2026-11-21T12:01:00" in text and "big (vendor)" in text and "1.23456789" in text and "cache (exact)" in text
    assert "No such rows." in press("list", "--key", "nobody").stdout
    wrong = press("list", "--since", "last week")
    assert wrong.exit_code == 2 and "'last week' is no moment" in wrong.stderr and "12h" in wrong.stderr
    assert press("list", "--since", "5m").exit_code == 0
    assert press("list", "--since", "9" * 30).exit_code == 2


def test_show(place: Workspace) -> None:
    correct(place, {"req_a2": 1_000_000_000})
    shown = said("show", "req_a2")
    assert (shown["usd"], shown["at"]) == ("1.23456789", "2026-11-21T12:01:00.000000Z")
    assert [each["usd"] for each in shown["corrections"]] == ["-0.23456789"]
    text = press("show", "req_a2").stdout
    assert "corrected" in text and "in all             1.00 USD" in text
    text = press("show", "req_a1").stdout
    assert "secret" in text and "\x1b" not in text and "alice" not in text
    assert isinstance(press("show", "req_a").exception, NotFoundError)
    assert isinstance(press("show", "%").exception, NotFoundError)
    assert isinstance(press("show", "").exception, NotFoundError)


def test_export(place: Workspace, tmp_path: Path) -> None:
    assert said("export", "all.csv", "--model", "smollm2")["rows"] == 3
    assert (tmp_path / "all.csv").read_text(encoding="utf-8").count("\n") == 4
    assert "4 rows in all.parquet" in press("export", "all.parquet").stdout
    assert isinstance(press("export", "all.txt").exception, StoreError)
    assert isinstance(press("export", "nowhere/all.csv").exception, StoreError)


def test_forget(place: Workspace) -> None:
    assert said("forget", "alice") == {"rows": 1}
    assert "no row is of this user" in press("forget", "alice").stdout
    assert press("forget", "").exit_code == 2
    assert said("show", "req_a1")["user"] == ""


def test_status_and_rows_that_wait(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    state = said("status")
    assert (state["rows"], state["waiting"], state["segments"], state["writers"]) == (4, 0, 0, [])
    ledger = unfolded(place)
    ledger.append(row("req_c", user="carol"))
    state = said("status")
    assert (state["waiting"], state["writers"][0]["worker"]) == (1, 0)
    assert state["segments"] >= 1 and state["journal_bytes"] > 0
    assert "worker 0 (process" in press("status").stdout
    assert "1 row wait" in press("list").stderr
    monkeypatch.setattr("pressroom.gateway.ledger._entries._WAIT_S", 0.0)
    assert isinstance(press("forget", "carol").exception, WorkspaceError)
    ledger._folding.start()
    assert ledger.stop()
    assert said("forget", "carol") == {"rows": 1}
    assert said("status")["writers"] == []
