"""The tables of the ledger, and their migrations.

`ledger` is only ever added to: a correction is a row of its own. What may change in it is that a user and texts are
taken out, and that rows older than `keep_days` go. `spending` is the sum of all rows ever, by whom and when; it is
changed in the transaction that adds the rows, and never otherwise.
"""

from __future__ import annotations

import sqlalchemy as sa

from pressroom.gateway.ledger.base import Counted, Outcome

#: What a row of the journal is a list of, in this order: the first columns of the table.
COLUMNS = (
    "id", "at", "key", "team", "user", "tag", "model", "branch", "ref", "digest", "engine", "door", "stream", "shadow",
    "status", "outcome", "prompt_tokens", "cached_tokens", "completion_tokens", "counted", "nano_usd", "first_s",
    "total_s", "tries", "cache", "language", "verdicts",
)  # fmt: skip
#: What the table has besides.
FURTHER = ("kind", "corrects", "recorded", "prompt_text", "answer_text")

REQUEST, CORRECTION = "request", "correction"

_Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")

metadata = sa.MetaData()

ledger = sa.Table(
    "ledger",
    metadata,
    # In the order rows were added. The id is the request's, and nothing that came from outside has to be unique here.
    sa.Column("number", _Number, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(64), nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("key", sa.String(64), nullable=False),
    sa.Column("team", sa.String(64), nullable=False),
    sa.Column("user", sa.String(32), nullable=False),
    sa.Column("tag", sa.String(200), nullable=False),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("branch", sa.String(200), nullable=False),
    sa.Column("ref", sa.String(400), nullable=False),
    sa.Column("digest", sa.String(80), nullable=False),
    sa.Column("engine", sa.String(64), nullable=False),
    sa.Column("door", sa.String(32), nullable=False),
    sa.Column("stream", sa.Boolean, nullable=False),
    sa.Column("shadow", sa.Boolean, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("counted", sa.String(16), nullable=False),
    sa.Column("nano_usd", sa.BigInteger, nullable=False),
    sa.Column("first_s", sa.Float, nullable=False),
    sa.Column("total_s", sa.Float, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("cache", sa.String(16), nullable=False),
    sa.Column("language", sa.String(35), nullable=False),
    # Words with commas between them.
    sa.Column("verdicts", sa.String(200), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    # Of a correction: the id of the request. Its `at`, key, team and model are those of that request's row, so that
    # sums over any of them come out right; `recorded` is when it was added.
    sa.Column("corrects", sa.String(64)),
    sa.Column("recorded", sa.Float, nullable=False),
    sa.Column("prompt_text", sa.Text),
    sa.Column("answer_text", sa.Text),
)
sa.Index("ledger_id", ledger.c.id)
sa.Index("ledger_at", ledger.c.at)
sa.Index("ledger_key", ledger.c.key, ledger.c.at)
sa.Index("ledger_model", ledger.c.model, ledger.c.at)
sa.Index("ledger_user", ledger.c.user, sqlite_where=ledger.c.user != "", postgresql_where=ledger.c.user != "")
sa.Index(
    "ledger_corrects",
    ledger.c.corrects,
    sqlite_where=ledger.c.corrects.is_not(None),
    postgresql_where=ledger.c.corrects.is_not(None),
)

spending = sa.Table(
    "spending",
    metadata,
    sa.Column("scope", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("period", sa.String(16), primary_key=True),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("nano_usd", sa.BigInteger, nullable=False),
)

# How far each journal was read: all before is in the table `ledger`.
journals = sa.Table(
    "ledger_journals",
    metadata,
    sa.Column("journal", sa.String(64), primary_key=True),
    sa.Column("segment", sa.BigInteger, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
)

# Requests that were open when the segment they are in was done with, and those that were lost with their process.
opened = sa.Table(
    "ledger_opened",
    metadata,
    sa.Column("journal", sa.String(64), primary_key=True),
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("key", sa.String(64), nullable=False),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("nano_usd", sa.BigInteger, nullable=False),
    sa.Column("team", sa.String(64), nullable=False),
    # When it was found that their process is gone, in seconds since the epoch.
    sa.Column("lost", sa.Float),
)

assert tuple(ledger.c.keys()) == ("number", *COLUMNS, *FURTHER)

# What a row without some column has there: written by another version, or altered.
_EMPTY = {"outcome": str(Outcome.ANSWERED), "counted": str(Counted.NONE)}
# More than this is no count of tokens and no time.
_LARGEST = 1 << 52
#: More than this is no cost of a request: 9 million dollars.
MUCH_MONEY = 1 << 53


def empty(column: str) -> object:
    """What stands for nothing in this column of a row."""
    kind = ledger.c[column].type
    if column in _EMPTY:
        return _EMPTY[column]
    if isinstance(kind, sa.Boolean):
        return False
    return 0 if isinstance(kind, sa.Integer) else 0.0 if isinstance(kind, sa.Float) else ""


def fitted(column: str, value: object) -> object:
    """The value as this column of a row can take it on any database, whatever it was."""
    kind = ledger.c[column].type
    if isinstance(kind, sa.String):
        text = value if isinstance(value, str) else empty(column)
        assert isinstance(text, str)
        return text.replace("\0", "").encode("utf-8", "replace").decode("utf-8")[: kind.length]
    if isinstance(kind, sa.Boolean):
        return bool(value)
    if not isinstance(value, int | float) or value != value:
        return empty(column)
    small = (1 << 31) - 1 if not isinstance(kind, sa.BigInteger | sa.Float) else _LARGEST
    if column == "nano_usd":
        small = MUCH_MONEY
    bounded = min(max(value, -small), small)
    return float(bounded) if isinstance(kind, sa.Float) else int(bounded)


def first_tables(connection: sa.Connection) -> None:
    metadata.create_all(connection)


MIGRATIONS = (first_tables,)
