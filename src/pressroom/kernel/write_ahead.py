"""SQLite's write-ahead log, switched on where several processes open a new file at the same moment."""

from __future__ import annotations

import sqlite3
import time

_POLL_S = 0.005


def write_ahead(connection: sqlite3.Connection, wait_s: float) -> None:
    """Let readers of this file go on beside one writer; every connection after this one finds it so.

    Waits `wait_s` seconds for those who do the same: SQLite does not, since one that reads a file in the old mode to
    change it cannot wait for another who does, and says "database is locked" at once whatever its timeout.

    Raises sqlite3.Error.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
        time.sleep(_POLL_S)
