"""What the journal says is in the database once, whatever becomes of the processes and of the database."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.gateway.ledger import Counted, JournalLedger, Outcome, open_ledger
from pressroom.gateway.ledger._folding import OldRows, remove_older
from pressroom.kernel import LockedError, Workspace

from .books import NOON, open_one, row, running, spending, summed, table, unfolded, workspace

DAY = 86_400.0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workspace]:
    with workspace(tmp_path, segment_bytes=65_536) as made:
        yield made


def killed(ledger: JournalLedger) -> None:
    """As good as dead: its threads end, its lock is free, nothing is tidied up."""
    ledger._folding._stopping = True
    ledger._folding._wake.set()
    ledger._folding._thread.join()
    ledger._journal._closing = True
    ledger._journal._wake.set()
    ledger._journal._keeper.join()
    ledger._held.close()


def journals(place: Workspace) -> list[Path]:
    return sorted((place.dir / "ledger").rglob("*.journal"))


def test_rows_are_in_the_table_as_they_were_and_spending_is_their_sum(place: Workspace) -> None:
    ledger = running(place)
    assert open_one(ledger, "a")
    assert ledger.append(
        row(
            "a",
            user="alice",
            tag="night",
            verdicts=["personal_data", "secret"],
            branch="canary",
            stream=True,
            cached_tokens=7,
        )
    )
    assert ledger.append(row("hit", cache="exact", nano_usd=0))
    assert ledger.append(row("refused", status=429, outcome=Outcome.FAILED, counted=Counted.NONE, asked=0, answered=0))
    assert ledger.append(row("nobody", key="", team="", at=NOON + DAY))
    assert ledger.flush()
    assert (ledger.rows, ledger.unfolded, ledger.failures, ledger.lost_rows, ledger.full) == (4, 0, 0, 0, False)
    first, hit, refused, nobody = rows = table(place)
    assert (first["id"], first["at"], first["key"], first["team"], first["model"]) == (
        "a",
        NOON,
        "ci",
        "search",
        "smollm2",
    )
    assert (first["prompt_tokens"], first["cached_tokens"], first["completion_tokens"]) == (100, 7, 20)
    assert (first["nano_usd"], first["outcome"], first["counted"], first["status"]) == (
        1_500,
        "answered",
        "stated",
        200,
    )
    assert (first["verdicts"], first["tag"], first["branch"], first["stream"]) == (
        "personal_data,secret",
        "night",
        "canary",
        1,
    )
    assert len(first["user"]) == 32 and "alice" not in str(rows)
    assert (first["kind"], first["corrects"], first["prompt_text"], first["language"]) == ("request", None, None, "")
    assert (hit["cache"], refused["status"], nobody["key"]) == ("exact", 429, "")
    assert spending(place) == summed(rows)
    assert spending(place)["all", "", "total"] == (240, 3_000)
    assert spending(place)["key", "ci", "2026-11-21"] == (120, 1_500)
    assert spending(place)["deployment", "smollm2", "2026-11-22"] == (120, 1_500)
    assert ("key", "", "total") not in spending(place)
    assert ledger.stop()
    assert journals(place) == []
    assert b"alice" not in b"".join(path.read_bytes() for path in place.dir.rglob("*") if path.is_file())


def test_requests_that_were_open_when_the_process_died_are_lost(place: Workspace) -> None:
    ledger = running(place)
    for name in ("a", "b", "c"):
        assert open_one(ledger, name)
    ledger.append(row("b"))
    assert ledger.flush()  # part of it is folded already
    assert open_one(ledger, "d")
    ledger.append(row("c"))
    assert open_one(ledger, "d")  # more is held for it
    killed(ledger)

    after = open_ledger(place)
    lost = after.recover()
    assert [(each.id, each.at, each.key, each.team, each.model, each.tokens, each.nano_usd) for each in lost] == [
        ("a", NOON, "ci", "search", "smollm2", 4_000, 60_000),
        ("d", NOON, "ci", "search", "smollm2", 4_000, 60_000),
    ]
    assert {each["id"]: each["outcome"] for each in table(place)} == {
        "a": "lost",
        "b": "answered",
        "c": "answered",
        "d": "lost",
    }
    assert spending(place) == summed(table(place))
    assert spending(place)["all", "", "total"] == (240, 3_000)
    assert journals(place) == []
    # Whoever is killed right after is told again: the holds have to be held until they expire.
    assert [each.id for each in after.recover()] == ["a", "d"]
    after.start()
    after.append(row("e"))
    assert after.stop()
    assert len(table(place)) == 5


def test_lost_requests_are_told_of_for_a_day(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = running(place)
    open_one(ledger, "a")
    killed(ledger)
    after = open_ledger(place)
    assert len(after.recover()) == 1
    now = time.time()
    monkeypatch.setattr("pressroom.gateway.ledger._fold.time.time", lambda: now + DAY + 60)
    assert after.recover() == []
    assert len(table(place)) == 1
    after.stop()


def test_requests_that_outlast_their_segment(place: Workspace) -> None:
    """Its segment is removed while a request still runs; the request is lost, or its row comes, all the same."""
    ledger = running(place)
    open_one(ledger, "long")
    open_one(ledger, "longer")
    for number in range(1_000):
        ledger.append(row(f"r{number}"))
    assert ledger.flush()
    assert len(journals(place)) < 4
    assert {each["id"] for each in table(place, "select id from ledger_opened")} == {"long", "longer"}
    ledger.append(row("long"))
    assert ledger.flush()
    assert {each["id"] for each in table(place, "select id from ledger_opened")} == {"longer"}
    killed(ledger)
    after = open_ledger(place)
    assert [each.id for each in after.recover()] == ["longer"]
    assert [each["outcome"] for each in table(place, "select outcome from ledger where id like 'long%'")] == [
        "answered",
        "lost",
    ]
    assert len(table(place)) == 1_002
    after.stop()


def test_a_damaged_segment_costs_the_record_and_is_reported(place: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    ledger = unfolded(place)
    for number in range(100):
        ledger.append(row(f"row-{number:03d}"))
    ledger._journal.close()
    ledger._held.close()
    [path] = journals(place)
    data = bytearray(path.read_bytes())
    data[data.index(b"row-050") + 2] ^= 0x20
    path.write_bytes(data)
    after = running(place)
    assert after.damaged == 1
    assert "is damaged" in caplog.text and path.name in caplog.text
    assert [each["id"] for each in table(place)] == [f"row-{number:03d}" for number in range(100) if number != 50]
    assert spending(place)["all", "", "total"] == (99 * 120, 99 * 1_500)
    after.stop()


def test_two_processes_cannot_write_one_journal_and_many_can_write_their_own(place: Workspace) -> None:
    first = running(place)
    with pytest.raises(LockedError, match="write the ledger as worker 0"):
        open_ledger(place)
    second = running(place, worker=1)
    first.append(row("a"))
    second.append(row("b"))
    open_one(second, "c")
    assert first.flush() and second.flush()
    assert first.recover() == []  # what lives is not recovered
    assert {each["id"] for each in table(place)} == {"a", "b"}
    killed(second)
    assert [each.id for each in first.recover()] == ["c"]  # and what died is, by whoever comes
    assert spending(place) == summed(table(place))
    assert first.stop()


def test_stopping_without_a_start_and_twice(place: Workspace) -> None:
    never = open_ledger(place)
    assert never.stop()
    ledger = running(place)
    ledger.append(row("a"))
    assert ledger.stop() and ledger.stop()
    assert not ledger.append(row("late"))  # kept in memory only, and said so
    assert [each["id"] for each in table(place)] == ["a"]


def test_rows_wait_in_the_journal_while_the_database_is_locked(
    place: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    from sqlalchemy import event

    @event.listens_for(place.database.engine, "connect")
    def soon(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA busy_timeout = 20")

    place.database.close()
    ledger = running(place)
    other = sqlite3.connect(place.dir / "pressroom.db", isolation_level=None)
    other.execute("begin immediate")
    for number in range(3_000):
        assert ledger.append(row(f"r{number}"))
    assert not ledger.flush(0.3)
    while not ledger.failures:
        time.sleep(0.01)
    assert ledger.unfolded == 3_000
    assert len(journals(place)) > 10
    assert "rows of the ledger wait in its journal" in caplog.text
    other.execute("rollback")
    other.close()
    assert ledger.flush(30)
    assert ledger.unfolded == 0
    assert [each["id"] for each in table(place)] == [f"r{number}" for number in range(3_000)]
    assert spending(place) == summed(table(place))
    assert ledger.stop()


def test_a_database_from_a_backup_gets_what_the_journal_still_has(place: Workspace, tmp_path: Path) -> None:
    ledger = running(place)
    ledger.append(row("before"))
    ledger.flush()
    with sqlite3.connect(place.dir / "pressroom.db") as now, sqlite3.connect(tmp_path / "backup.db") as copy:
        now.backup(copy)
    now.close()
    copy.close()
    ledger.append(row("after"))
    ledger.flush()
    killed(ledger)
    place.database.close()
    for name in ("pressroom.db-wal", "pressroom.db-shm"):
        (place.dir / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup.db", place.dir / "pressroom.db")
    running(place).stop()
    assert [each["id"] for each in table(place)] == ["before", "after"]
    assert spending(place) == summed(table(place))


def test_a_transaction_that_seemed_to_fail_is_not_made_twice(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection breaks between the commit and its answer: the place in the database tells."""
    from contextlib import contextmanager

    from pressroom.kernel import WorkspaceError

    ledger = unfolded(place)
    ledger.append(row("a"))
    database = place.database
    real = type(database).begin

    @contextmanager
    def breaking(self):  # type: ignore[no-untyped-def]
        with real(self) as connection:
            yield connection
        raise WorkspaceError("the connection was lost")

    monkeypatch.setattr(type(database), "begin", breaking)
    with pytest.raises(WorkspaceError, match="lost"):
        ledger._fold.step(ledger._journal.position())
    monkeypatch.undo()
    with pytest.raises(WorkspaceError, match="in the database and at"):
        ledger._fold.step(ledger._journal.position())
    ledger._fold.step(ledger._journal.position())
    ledger._folding.start()
    assert ledger.stop()
    assert [each["id"] for each in table(place)] == ["a"]
    assert spending(place) == summed(table(place))


class _Killed(BaseException):
    """The end of a process, at a place of the test's choosing."""


def test_a_kill_at_any_statement_leaves_all_or_nothing(place: Workspace) -> None:
    from sqlalchemy import event

    running(place).stop()  # migrations are not what is tested here
    left = [0]

    def count(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise _Killed

    engine = place.database.engine
    survived = 0
    for statement in range(1, 200):
        ledger = unfolded(place)
        for number in range(200):
            name = f"{statement}-{number}"
            assert open_one(ledger, name)
            if number % 50:
                assert ledger.append(row(name, model=f"m{number % 3}", nano_usd=statement))
        left[0] = statement
        event.listen(engine, "before_cursor_execute", count)
        event.listen(engine, "commit", count)
        try:
            while ledger._fold.step(ledger._journal.position()):
                pass
            survived += 1
        except _Killed:
            pass
        event.remove(engine, "before_cursor_execute", count)
        event.remove(engine, "commit", count)
        ledger._journal._closing = True
        ledger._journal._wake.set()
        ledger._journal._keeper.join()
        ledger._held.close()
        if survived > 2:
            break
    assert statement > 10
    after = open_ledger(place)
    assert len(after.recover()) == statement * 4
    after.stop()
    rows = table(place)
    assert len({each["id"] for each in rows}) == len(rows) == statement * 200
    assert spending(place) == summed(rows)
    assert table(place, "select * from ledger_opened where lost is null") == []


def test_a_clock_that_goes_back(place: Workspace) -> None:
    """Spending belongs to the day a request says; nothing is counted for another one, or twice."""
    ledger = running(place)
    for number, at in enumerate(
        [NOON, NOON + DAY, NOON - 40 * DAY, NOON, 0.0, -5.0, 1e300, float("nan"), float("inf")]
    ):
        assert open_one(ledger, f"r{number}", at=at)
        assert ledger.append(row(f"r{number}", at=at))
    assert ledger.flush()
    rows = table(place)
    assert len(rows) == 9
    assert spending(place) == summed(rows)
    assert spending(place)["all", "", "2026-11-21"] == (240, 3_000)
    assert spending(place)["all", "", "2026-10-12"] == (120, 1_500)
    assert spending(place)["all", "", "total"] == (9 * 120, 9 * 1_500)
    assert ledger.stop()


def test_what_clients_and_vendors_make_up_is_made_to_fit(place: Workspace) -> None:
    ledger = running(place)
    long = "\N{SNOWMAN}" * 5_000
    hostile = [
        row("numbers", asked=10**30, answered=2**62, nano_usd=2**70, status=2**40, first_s=float("nan")),
        row("below", asked=-5, answered=2**63 - 1),
        row("texts", tag=long, user=long, key=long, team=long, model=long, ref=long, digest=long, verdicts=[long]),
        row("nul", tag="a\0b", user="\0", model="m\0"),
        row("halves", tag="\ud800", user="\udfff", key="\ud800" * 3_000),
        row("x" * 500),
        row(""),
    ]
    for each in hostile:
        assert ledger.append(each)
    assert ledger.opened("open\0" * 3_000, NOON, "\ud800", long, long, 10**30, -(10**30))
    assert ledger.append(row("plain"))
    assert ledger.flush()
    rows = table(place)
    assert len(rows) == 8
    assert (rows[-1]["id"], rows[-1]["prompt_tokens"]) == ("plain", 100)
    assert rows[0]["first_s"] == 0.0
    assert 0 <= rows[1]["prompt_tokens"] < rows[1]["completion_tokens"] <= 2**40
    assert spending(place) == summed(rows)
    killed(ledger)
    after = open_ledger(place)
    assert len(after.recover()) == 1
    after.stop()
    assert len(table(place)) == 9


def test_sums_beyond_counting_stop_there(place: Workspace) -> None:
    ledger = running(place)
    for number in range(1_100):
        assert ledger.append(row(f"r{number}", nano_usd=2**60))
    assert ledger.flush(30)
    assert spending(place)["all", "", "total"] == (1_100 * 120, 2**62)
    ledger.append(row("more"))
    assert ledger.stop()
    assert spending(place)["all", "", "total"] == (1_101 * 120, 2**62)
    assert len(table(place)) == 1_101


def test_old_rows_go_and_what_was_spent_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with workspace(tmp_path, keep_days=10) as place:
        ledger = running(place)
        for number in range(30):
            ledger.append(row(f"r{number}", at=NOON - number * DAY))
        ledger.flush()
        before = spending(place)
        hour = [0.0]
        monkeypatch.setattr("pressroom.gateway.ledger._folding.time.monotonic", lambda: 100.0 + hour[0])
        wall = [NOON]
        monkeypatch.setattr("pressroom.gateway.ledger._folding.time.time", lambda: wall[0] + hour[0])
        old = OldRows(place.database, 10)
        assert old.remove() == 0  # not in the first hour
        hour[0] = 3_700.0
        wall[0] += 365 * DAY
        assert old.remove() == 0  # nor when the clock was set
        wall[0] -= 365 * DAY
        assert old.remove() == 0
        hour[0] += 3_700.0
        assert old.remove() == 20  # the tenth day was over two hours ago
        assert old.remove() == 0
        monkeypatch.undo()
        assert len(table(place)) == 10
        assert spending(place) == before
        assert OldRows(place.database, 0).remove() == 0
        assert remove_older(place.database, NOON - 8.5 * DAY, most=1) == 1
        ledger.stop()
        assert len(table(place)) == 9


def test_a_journal_of_another_version_is_read_by_its_names(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from pressroom.gateway.ledger import _ledger
    from pressroom.gateway.ledger._tables import COLUMNS

    older = tuple(name for name in COLUMNS if name not in ("tag", "cache"))
    monkeypatch.setattr(_ledger, "COLUMNS", (*older[:5], "gone", *older[5:]))
    ledger = unfolded(place)
    import orjson

    values = {name: getattr(row("a", tag="unknown then"), name) for name in older} | {"verdicts": "", "gone": 17}
    ledger._put_row("a", orjson.dumps([values[name] for name in _ledger.COLUMNS]))
    ledger._journal.close()
    ledger._held.close()
    monkeypatch.undo()
    running(place).stop()
    [found] = table(place)
    assert (found["id"], found["tag"], found["cache"], found["prompt_tokens"]) == ("a", "", "", 100)


def test_the_salt_is_its_owners_only_and_two_agree_on_it(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from pressroom.gateway.ledger._users import open_users
    from pressroom.kernel import WorkspaceError

    with ThreadPoolExecutor(8) as pool:
        hashes = {users.hashed("alice") for users in pool.map(lambda _: open_users(tmp_path), range(8))}
    assert len(hashes) == 1
    assert os.listdir(tmp_path) == ["salt"]
    assert (tmp_path / "salt").stat().st_mode & 0o777 == 0o600
    assert open_users(tmp_path).hashed("bob") not in hashes
    (tmp_path / "salt").write_bytes(b"short")
    with pytest.raises(WorkspaceError, match="has 5 bytes"):
        open_users(tmp_path)
