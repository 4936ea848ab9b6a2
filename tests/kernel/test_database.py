"""Migrations and transactions, on SQLite. The same on PostgreSQL: test_postgres.py."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from pressroom.kernel import MigrationError, MissingDependencyError, SettingsError, WorkspaceError
from pressroom.kernel.database import Database

metadata = sa.MetaData()
sheets = sa.Table("sheets", metadata, sa.Column("name", sa.String(32), primary_key=True))


def make_sheets(connection: sa.Connection) -> None:
    sheets.create(connection)


def add_a_sheet(connection: sa.Connection) -> None:
    connection.execute(sheets.insert().values(name="first"))


def fail(connection: sa.Connection) -> None:
    connection.execute(sheets.insert().values(name="half"))
    raise RuntimeError("the step failed half-way")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database("sqlite:///.pressroom/pressroom.db", root=tmp_path)
    yield made
    made.close()


def rows(database: Database) -> list[str]:
    with database.reading() as connection:
        return list(connection.execute(sa.select(sheets.c.name).order_by(sheets.c.name)).scalars())


def applied(database: Database) -> list[tuple[str, int, str]]:
    with database.reading() as connection:
        found = connection.execute(sa.text("select part, number, name from pressroom_migrations order by part, number"))
        return [tuple(row) for row in found]


def test_each_step_runs_once_and_is_recorded(database: Database) -> None:
    database.migrate("press", [make_sheets])
    database.migrate("press", [make_sheets, add_a_sheet])
    database.migrate("press", [make_sheets, add_a_sheet])
    assert rows(database) == ["first"]
    assert applied(database) == [("press", 1, "make_sheets"), ("press", 2, "add_a_sheet")]


def test_parts_count_for_themselves(database: Database) -> None:
    database.migrate("press", [make_sheets])
    database.migrate("paper", [add_a_sheet])
    assert applied(database) == [("paper", 1, "add_a_sheet"), ("press", 1, "make_sheets")]


def test_a_step_that_fails_leaves_nothing(database: Database) -> None:
    with pytest.raises(RuntimeError, match="half-way"):
        database.migrate("press", [make_sheets, fail])
    with database.reading() as connection:
        assert sa.inspect(connection).get_table_names() == [], "also the table of the step before it is undone"
    database.migrate("press", [make_sheets, add_a_sheet])
    assert rows(database) == ["first"]


def test_a_newer_database_is_refused_untouched(database: Database) -> None:
    database.migrate("press", [make_sheets, add_a_sheet])
    with pytest.raises(MigrationError, match=r"has step 2 of 'press'; this Pressroom knows 1") as caught:
        database.migrate("press", [make_sheets])
    assert "newer Pressroom" in caught.value.hint
    assert rows(database) == ["first"]


def test_processes_that_start_at_once_migrate_once(
    database: Database, migrate_in_processes: Callable[[str], None]
) -> None:
    migrate_in_processes("sqlite:///.pressroom/pressroom.db")
    with database.reading() as connection:
        assert connection.execute(sa.text("select count(*) from counted")).scalar_one() == 20


def test_a_block_that_fails_is_undone(database: Database) -> None:
    database.migrate("press", [make_sheets])
    with pytest.raises(ZeroDivisionError), database.begin() as connection:
        connection.execute(sheets.insert().values(name="gone"))
        _ = 1 / 0
    assert rows(database) == []


def test_writers_wait_for_each_other(database: Database) -> None:
    """Read, then write what was read plus one: with transactions that begin too late, counts get lost or fail."""
    counter = sa.table("counter", sa.column("n"))

    def make_counter(connection: sa.Connection) -> None:
        connection.execute(sa.text("create table counter (n integer)"))
        connection.execute(sa.text("insert into counter values (0)"))

    database.migrate("counter", [make_counter])

    def add() -> None:
        for _ in range(20):
            with database.begin() as connection:
                n = connection.execute(sa.select(counter.c.n)).scalar_one()
                connection.execute(sa.update(counter).values(n=n + 1))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as connection:
        assert connection.execute(sa.select(counter.c.n)).scalar_one() == 80


def test_a_reader_keeps_no_writer_waiting(database: Database) -> None:
    database.migrate("press", [make_sheets])
    with database.reading() as reader:
        assert reader.execute(sa.select(sa.func.count()).select_from(sheets)).scalar_one() == 0
        with database.begin() as writer:
            writer.execute(sheets.insert().values(name="meanwhile"))
        assert reader.execute(sa.select(sa.func.count()).select_from(sheets)).scalar_one() == 0, "one moment"
    assert rows(database) == ["meanwhile"]


def test_a_rule_of_a_table_reaches_its_part(database: Database) -> None:
    database.migrate("press", [make_sheets, add_a_sheet])
    with pytest.raises(sa.exc.IntegrityError), database.begin() as connection:
        connection.execute(sheets.insert().values(name="first"))


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "news.db").write_bytes(b"All the news that is fit to print. " * 100)
    database = Database("sqlite:///news.db", root=tmp_path)
    with pytest.raises(WorkspaceError, match=r"news\.db is damaged: file is not a database") as caught:
        database.migrate("press", [make_sheets])
    assert "backup" in caught.value.hint and "press gc" in caught.value.hint
    database.close()


def test_a_damaged_file_is_said_to_be(database: Database, tmp_path: Path) -> None:
    database.migrate("press", [make_sheets, add_a_sheet])
    database.close()
    file = tmp_path / ".pressroom" / "pressroom.db"
    content = bytearray(file.read_bytes())
    for page in range(4096, len(content), 4096):
        content[page : page + 64] = bytes([255] * 64)
    file.write_bytes(content)
    with pytest.raises(WorkspaceError, match="is damaged") as caught:
        rows(database)
    assert "pressroom.db-wal" in caught.value.hint


def test_a_place_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="file cannot be made"):
        Database("sqlite:///file/press.db", root=tmp_path)


def test_a_directory_is_no_database(tmp_path: Path) -> None:
    database = Database("sqlite:///.", root=tmp_path)
    with pytest.raises(WorkspaceError), database.begin():
        pytest.fail("a directory was opened")
    database.close()


@pytest.mark.parametrize("url", ["pressroom.db", "", "sqlite", "nosuch://host/name", "sqlite+nosuch:///x", "://"])
def test_a_url_that_is_none_is_quoted(url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        Database(url, root=tmp_path)
    assert repr(url) in caught.value.message
    assert "sqlite:///" in caught.value.hint


def test_a_driver_that_is_missing_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="pymssql") as caught:
        Database("mssql+pymssql://host/name", root=tmp_path)
    assert caught.value.hint.endswith("pip install pymssql")
    assert caught.value.facts == {"library": "pymssql"}


def test_postgresql_without_its_driver_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingDependencyError, match="psycopg") as caught:
        Database("postgresql://user:secret@host/name", root=tmp_path)
    assert caught.value.hint.endswith("pip install 'pressroom[postgres]'")
    assert "secret" not in caught.value.message


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    database = Database("postgresql+psycopg://user:secret@127.0.0.1:1/name", root=tmp_path)
    assert "secret" not in database.url
    with pytest.raises(WorkspaceError) as caught, database.begin():
        pytest.fail("nobody listens there")
    assert "secret" not in str(caught.value.as_dict())
    database.close()
