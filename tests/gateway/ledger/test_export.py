"""The ledger as a file: every row in it, whole or not there."""

from __future__ import annotations

import csv
import json
import sys
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pressroom.gateway.ledger import Filter, Rows, _export, export
from pressroom.gateway.ledger._tables import ledger as ledger_table
from pressroom.kernel import MissingDependencyError, StoreError, StoreFullError, Workspace

from .books import NOON, row, running, table, workspace


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workspace]:
    with workspace(tmp_path / "workspace") as made:
        ledger = running(made)
        ledger.append(row("first", at=NOON - 0.25, verdicts=["secret", "personal_data"], tag="=1+1", stream=True))
        for number in range(99):
            ledger.append(row(f"r{number:03d}", at=NOON + number, user="alice" if number < 3 else "", nano_usd=2**53))
        assert ledger.stop()
        yield made


def test_parquet(place: Workspace, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "all.parquet"
    assert export(place, path) == 100
    found = pq.read_table(path)
    assert found.num_rows == 100
    assert str(found.schema.field("at").type) == "timestamp[us, tz=UTC]"
    assert str(found.schema.field("nano_usd").type) == "int64"
    first = found.slice(0, 1).to_pylist()[0]
    assert first["at"] == datetime(2026, 11, 21, 11, 59, 59, 750_000, tzinfo=UTC)
    assert (first["verdicts"], first["stream"], first["nano_usd"]) == (["secret", "personal_data"], True, 1_500)
    assert found.column("nano_usd").to_pylist()[1] == 2**53
    assert first["prompt_text"] is None and first["corrects"] is None


def test_csv_and_json_lines(place: Workspace, tmp_path: Path) -> None:
    assert export(place, tmp_path / "all.csv") == 100
    rows = list(csv.DictReader((tmp_path / "all.csv").read_text(encoding="utf-8").splitlines()))
    assert rows[0]["at"] == "2026-11-21T11:59:59.750000Z"
    assert (rows[0]["verdicts"], rows[0]["tag"], rows[0]["stream"]) == ("secret,personal_data", "'=1+1", "true")
    assert rows[1]["nano_usd"] == str(2**53)
    assert export(place, tmp_path / "some.jsonl", Filter(since=NOON + 10, until=NOON + 20)) == 10
    lines = [json.loads(line) for line in (tmp_path / "some.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (lines[0]["verdicts"], lines[0]["stream"], lines[0]["corrects"]) == ([], False, None)
    assert [each["id"] for each in lines] == [f"r{number:03d}" for number in range(10, 20)]
    assert export(place, tmp_path / "hers.jsonl", Filter(user="alice")) == 3
    assert export(place, tmp_path / "none.jsonl", Filter(team="other")) == 0
    assert (tmp_path / "none.jsonl").read_bytes() == b""


def test_what_was_there_stays_when_it_fails(place: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text("before")
    with pytest.raises(StoreError, match=r"cannot be written as \.xlsx"):
        export(place, tmp_path / "all.xlsx")
    with pytest.raises(StoreError, match="without an ending"):
        export(place, tmp_path / "all")

    real = Rows.pages

    def full(self: Rows, wanted: Filter | None = None) -> Iterator[object]:
        yield next(real(self, wanted, page=3))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_export.Rows, "pages", full)
    with pytest.raises(StoreFullError, match="No space left"):
        export(place, path)
    assert path.read_text() == "before"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["all.jsonl", "workspace"]


def test_without_pyarrow(place: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match="pyarrow") as error:
        export(place, tmp_path / "all.parquet")
    assert "pip install 'pressroom[parquet]'" in error.value.hint
    assert [each.name for each in tmp_path.iterdir()] == ["workspace"]


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_memory_does_not_grow_with_the_rows(
    place: Workspace, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_export, "_GROUP", 16_384)
    first = {name: value for name, value in table(place)[0].items() if name != "number"}

    def peak(rows: int) -> int:
        with place.database.begin() as connection:
            connection.execute(ledger_table.insert(), [first] * rows)
        tracemalloc.start()
        assert export(place, tmp_path / f"all.{ending}") >= rows
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    few = peak(20_000)
    assert peak(40_000) < 1.3 * few
