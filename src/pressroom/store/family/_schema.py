"""The tables of the index, and the SQLite connection that keeps them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from pressroom.kernel.write_ahead import write_ahead

# Not migrated but made anew from what lies in the place: a number up here rebuilds every index.
VERSION = 2
# Seconds a writer waits for another one.
_BUSY_S = 60

_TABLES = """
CREATE TABLE pieces (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, size INTEGER NOT NULL,
    payload INTEGER NOT NULL,                     -- bytes of it that are blocks of tensors
    tainted INTEGER NOT NULL DEFAULT 0            -- holds a damaged copy: to be rewritten
);
CREATE TABLE tensors (
    id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, dtype TEXT NOT NULL, row INTEGER NOT NULL,
    nbytes INTEGER NOT NULL, block INTEGER NOT NULL, depth INTEGER NOT NULL, recipe TEXT,
    first INTEGER NOT NULL,                       -- of the digest of the first block, to be found by it
    copy BLOB NOT NULL DEFAULT x'',
    damaged INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX tensors_first ON tensors (first);
CREATE TABLE bad_copies (copy BLOB PRIMARY KEY) WITHOUT ROWID;   -- found damaged, wherever they lie now
CREATE TABLE parents (
    child INTEGER NOT NULL, position INTEGER NOT NULL, parent INTEGER NOT NULL, PRIMARY KEY (child, position)
) WITHOUT ROWID;
CREATE INDEX parents_parent ON parents (parent);
CREATE TABLE segments (
    tensor INTEGER NOT NULL, first INTEGER NOT NULL, piece INTEGER NOT NULL, offset INTEGER NOT NULL,
    length INTEGER NOT NULL, plain INTEGER NOT NULL, blocks BLOB NOT NULL, PRIMARY KEY (tensor, first)
) WITHOUT ROWID;
CREATE INDEX segments_piece ON segments (piece);
CREATE TABLE layouts (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, body BLOB NOT NULL);
CREATE TABLE files (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, layout INTEGER NOT NULL,
    whole INTEGER NOT NULL, probe BLOB NOT NULL, sketch BLOB NOT NULL,
    damaged INTEGER NOT NULL DEFAULT 0,           -- found so where no tensor is to blame
    gone INTEGER NOT NULL DEFAULT 0               -- deleted, and remembered while others need its tensors
);
CREATE INDEX files_probe ON files (size, probe);
CREATE INDEX files_layout ON files (layout);
CREATE TABLE file_tensors (
    file INTEGER NOT NULL, position INTEGER NOT NULL, tensor INTEGER NOT NULL, PRIMARY KEY (file, position)
) WITHOUT ROWID;
CREATE INDEX file_tensors_tensor ON file_tensors (tensor);
"""


def connect(path: Path | None) -> sqlite3.Connection:
    """A connection that begins no transaction by itself; None: in memory. Raises sqlite3.Error and OSError."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(
        ":memory:" if path is None else path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
    )
    try:
        if path is not None:
            write_ahead(connection, _BUSY_S)
            # A transaction that a power cut takes back is found again in the packs: no sync for each.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA journal_size_limit = 0")
        connection.execute("PRAGMA temp_store = MEMORY")
    except BaseException:
        connection.close()
        raise
    return connection


def is_current(connection: sqlite3.Connection) -> bool:
    """Whether the tables are there, in the form of this version."""
    found: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return found == VERSION


def create(connection: sqlite3.Connection) -> None:
    """Empty tables in place of whatever is there; inside a transaction of the caller."""
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        connection.execute(f'DROP TABLE "{name}"')
    for statement in _TABLES.split(";"):
        if statement.strip():
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {VERSION}")
