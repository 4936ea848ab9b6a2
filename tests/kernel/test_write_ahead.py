"""A new SQLite file that several open at the same moment."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest

from pressroom.kernel.write_ahead import write_ahead


def connected(path: Path) -> sqlite3.Connection:
    # Without a timeout SQLite gives up at once, as it does of itself where waiting could last for ever.
    return sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)


def test_who_changes_the_mode_waits_for_who_is_in_the_file(tmp_path: Path) -> None:
    first, second = connected(tmp_path / "a.db"), connected(tmp_path / "a.db")
    first.execute("BEGIN EXCLUSIVE")
    leaving = threading.Thread(target=lambda: (time.sleep(0.1), first.execute("CREATE TABLE t (x)"), first.commit()))
    leaving.start()
    write_ahead(second, 60)
    assert second.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert second.execute("SELECT count(*) FROM t").fetchone() == (0,)
    leaving.join()
    first.close()
    second.close()


def test_it_ends_where_nobody_leaves(tmp_path: Path) -> None:
    first, second = connected(tmp_path / "a.db"), connected(tmp_path / "a.db")
    first.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        write_ahead(second, 0.02)
    first.close()
    second.close()


def test_what_is_no_database_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"not a database" * 100)
    connection = connected(tmp_path / "a.db")
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        write_ahead(connection, 60)
    connection.close()
