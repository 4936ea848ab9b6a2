"""Reading beside a server that writes and folds, and without one: nothing is missed, and nothing is made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.gateway.ledger import Filter, Rows, _reading
from pressroom.gateway.ledger._reading import rows_from
from pressroom.gateway.ledger._segments import numbers, path_of
from pressroom.kernel import Workspace, WorkspaceError

from .books import row, running, unfolded, workspace


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workspace]:
    with workspace(tmp_path, segment_bytes=65_536) as made:
        yield made


def test_what_is_folded_while_one_reads_costs_no_row_behind_it(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = unfolded(place)
    for number in range(1_000):
        assert ledger.append(row(f"r{number}", tag="t" * 60))
    folder = ledger._folder
    before = numbers(folder)
    assert len(before) >= 4
    listed: list[int] = []

    def numbers_then_folded(folder: Path) -> list[int]:
        found = numbers(folder)
        if len(listed) < 2:  # after it was listed, and before it is opened
            listed.append(found[0])
            path_of(folder, found[0]).unlink()
        return found

    monkeypatch.setattr(_reading, "numbers", numbers_then_folded)
    found = [each[0] for each in rows_from(folder, (0, 0))]
    assert listed == before[:2]
    assert found and found[-1] == "r999"
    first = int(found[0][1:])
    assert found == [f"r{number}" for number in range(first, 1_000)]
    assert list(rows_from(folder.with_name("nowhere"), (0, 0))) == []


def test_who_only_reads_makes_no_salt(tmp_path: Path) -> None:
    with workspace(tmp_path) as place:
        rows = Rows(place)
        assert rows.forget("alice") == 0
        assert rows.list(Filter(user="alice")) == []
        assert rows.state().waiting == 0
        assert not (place.dir / "ledger").exists()
        ledger = running(place)
        ledger.append(row("a", user="alice"))
        ledger.append(row("b"))
        assert ledger.stop()
        salt = place.dir / "ledger" / "salt"
        key = salt.read_bytes()
        salt.unlink()
        for ask in (lambda: rows.forget("alice"), lambda: rows.list(Filter(user="alice"))):
            with pytest.raises(WorkspaceError, match="salt is not there"):
                ask()
        assert len(rows.list()) == 2
        assert not salt.exists()
        salt.write_bytes(key)
        assert [entry.id for entry in rows.list(Filter(user="alice"))] == ["a"]
        assert rows.forget("alice") == 1
