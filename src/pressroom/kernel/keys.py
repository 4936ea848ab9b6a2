"""Keys: who may do what, and how much of it. The secret is shown once; the database holds its SHA-256 and nothing else.

What a key may do is in `rights`. What it may use of the gateway at most are whole numbers here; the gateway gives them
their meaning.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import sqlalchemy as sa

from pressroom.kernel.errors import NotFoundError, did_you_mean
from pressroom.kernel.rights import RIGHTS, AccessError, checked_grant, checked_right, covers, gives
from pressroom.kernel.workspace import Workspace

__all__ = ["AccessError", "Key", "Keys"]

_SECRET = re.compile(r"pr-[A-Za-z0-9_-]{43}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_MOST = 10**15

_metadata = sa.MetaData()
_keys = sa.Table(
    "access_keys",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("name", sa.String(64), nullable=False, index=True),
    sa.Column("secret_sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("rights", sa.JSON, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    # A revoked key stays: history names it, and its secret must never open anything again.
    sa.Column("revoked", sa.Float),
    sa.Column("team", sa.String(64), nullable=False, server_default=""),
    sa.Column("requests_per_minute", sa.BigInteger),
    sa.Column("tokens_per_minute", sa.BigInteger),
    sa.Column("parallel", sa.BigInteger),
    sa.Column("expires", sa.Float),
)
# One row: how often a key was made, changed or revoked.
_changes = sa.Table(
    "access_changes",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.BigInteger, nullable=False),
)


def _first_table(connection: sa.Connection) -> None:
    _metadata.create_all(connection)


def _teams_and_limits(connection: sa.Connection) -> None:
    """The columns and the table that a database of the first step may not have."""
    known = {column["name"] for column in sa.inspect(connection).get_columns(_keys.name)}
    for column in _keys.columns:
        if column.name not in known:
            rest = "" if column.nullable else " NOT NULL DEFAULT ''"
            kind = column.type.compile(connection.dialect)
            connection.execute(sa.text(f"ALTER TABLE {_keys.name} ADD COLUMN {column.name} {kind}{rest}"))
    _changes.create(connection, checkfirst=True)
    connection.execute(_changes.insert().values(id=1, number=0))


class Keep(Enum):
    """Stands for what it was."""

    KEEP = "keep"


KEEP: Literal[Keep.KEEP] = Keep.KEEP


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A key as it is kept. `created`, `revoked` and `expires` are seconds since the epoch, `rights` as they were
    written; `team` is '' where it has none. A limit that is None is none: requests and tokens a minute (a
    bucket that begins full and holds as many, so that up to twice as many may come within one minute), and requests at
    once."""

    name: str
    rights: tuple[str, ...]
    created: float
    revoked: float | None = None
    team: str = ""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    parallel: int | None = None
    expires: float | None = None

    def live(self, now: float) -> bool:
        """Whether it opens anything at this time, in seconds since the epoch."""
        return self.revoked is None and (self.expires is None or now < self.expires)

    def may(self, right: str, model: str) -> bool:
        """Whether it has this right for the model, or the deployment, of that name.

        Raises:
            AccessError: there is no such right.
        """
        checked_right(right)
        return self.live(time.time()) and any(covers(grant, right, model) for grant in self.rights)


class Keys:
    """The keys of one workspace. Thread-safe; several processes may use it at once."""

    def __init__(self, workspace: Workspace) -> None:
        self._database = workspace.database
        self._database.migrate("keys", (_first_table, _teams_and_limits))

    def create(
        self,
        name: str,
        rights: Iterable[str],
        *,
        team: str = "",
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        parallel: int | None = None,
        expires: float | None = None,
    ) -> tuple[Key, str]:
        """Make a key; the second value is its secret, which cannot be had again.

        Raises:
            AccessError: the name is taken or cannot be one, a right does not exist, there are none, a limit is not a
                number above 0, or its time is over before it begins.
        """
        _checked_name(name, "a key")
        granted = tuple(dict.fromkeys(checked_grant(right) for right in rights))
        if not granted:
            raise AccessError(
                f"the key {name!r} would have no right", hint=f"Name one: --right {' or --right '.join(RIGHTS)}."
            )
        bounds = _checked(
            team=team,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            parallel=parallel,
            expires=expires,
        )
        secret = f"pr-{secrets.token_urlsafe(32)}"
        made = Key(name=name, rights=granted, created=time.time(), **bounds)
        with self._database.begin() as connection:
            if connection.dialect.name == "postgresql":
                # Two that take one name at once; SQLite's BEGIN IMMEDIATE keeps the second one out.
                connection.execute(sa.text("LOCK TABLE access_keys IN SHARE ROW EXCLUSIVE MODE"))
            taken = sa.select(_keys.c.id).where((_keys.c.name == name) & _keys.c.revoked.is_(None))
            if connection.execute(taken).first() is not None:
                raise AccessError(
                    f"there is a key called {name!r} already",
                    hint=f"Choose another name, or `press keys revoke {name}` first.",
                    asked=name,
                )
            hashed = _hashed(secret).hex()
            row = {"name": name, "secret_sha256": hashed, "rights": list(granted), "created": made.created, **bounds}
            connection.execute(_keys.insert().values(row))
            _count_change(connection)
        return made, secret

    def change(
        self,
        name: str,
        *,
        team: str | Keep = KEEP,
        requests_per_minute: int | Keep | None = KEEP,
        tokens_per_minute: int | Keep | None = KEEP,
        parallel: int | Keep | None = KEEP,
        expires: float | Keep | None = KEEP,
    ) -> Key:
        """Change what is given; everything else of the key stays as it is, its secret, too.

        Raises:
            NotFoundError: there is no such key.
            AccessError: as for `create`.
        """
        wanted = {
            "team": team,
            "requests_per_minute": requests_per_minute,
            "tokens_per_minute": tokens_per_minute,
            "parallel": parallel,
            "expires": expires,
        }
        changes = _checked(**{field: value for field, value in wanted.items() if value is not KEEP})
        return self._update(name, changes)

    def revoke(self, name: str) -> Key:
        """End a key; from now on its secret is refused everywhere. Raises NotFoundError."""
        return self._update(name, {"revoked": time.time()})

    def _update(self, name: str, changes: dict[str, Any]) -> Key:
        live = (_keys.c.name == name) & _keys.c.revoked.is_(None)
        with self._database.begin() as connection:
            found = connection.scalar(sa.select(_keys.c.id).where(live))
            if found is not None:
                this = _keys.c.id == found
                if changes:
                    connection.execute(_keys.update().where(this).values(changes))
                    _count_change(connection)
                return _key(connection.execute(sa.select(_keys).where(this)).one())
        known = [key.name for key in self.list()]
        raise NotFoundError(
            f"there is no key called {name!r}",
            hint=did_you_mean(name, known, otherwise="`press keys list` shows them."),
            asked=name,
            known=known,
        )

    def find(self, secret: str) -> Key | None:
        """The key with this secret; None where there is none, or where it was revoked or has expired."""
        if not _SECRET.fullmatch(secret):
            return None
        hashed = _hashed(secret).hex()
        with self._database.reading() as connection:
            row = connection.execute(sa.select(_keys).where(_keys.c.secret_sha256 == hashed)).one_or_none()
        # The look-up is by a hash: how long it takes says nothing of a secret.
        key = None if row is None else _key(row)
        return key if key is not None and key.live(time.time()) else None

    def require(self, secret: str, right: str, model: str) -> Key:
        """The key with this secret, if it has the right for the model.

        Raises:
            AccessError: no key has this secret, it was revoked or has expired, or it lacks the right.
        """
        found = self.find(secret)
        if found is None:
            raise AccessError(
                "the key is not known here, was revoked, or has expired",
                hint=f"`press keys list` shows the keys; make one: press keys create NAME --right {right}:{model}",
            )
        if not found.may(right, model):
            raise AccessError(
                f"the key {found.name!r} may not {right} {model}: it has {', '.join(found.rights)}",
                hint=f"Use a key with the right {right} (or {right}:{model}).",
                key=found.name,
                right=right,
                model=model,
            )
        return found

    def list(self, *, revoked: bool = False) -> list[Key]:
        """The keys that were not revoked, in the order they were made, also those that have expired; with `revoked`
        all there ever were."""
        query = sa.select(_keys).order_by(_keys.c.id)
        with self._database.reading() as connection:
            rows = connection.execute(query if revoked else query.where(_keys.c.revoked.is_(None))).all()
        return [_key(row) for row in rows]

    def changes(self) -> int:
        """Another number than before whenever a key was made, changed or revoked: one look at one row."""
        with self._database.reading() as connection:
            return int(connection.scalar(sa.select(_changes.c.number)) or 0)

    def by_digest(self) -> tuple[int, dict[bytes, Key]]:
        """`changes()`, and at the same moment the keys that were not revoked, by the SHA-256 of their secrets."""
        with self._database.reading() as connection:
            number = int(connection.scalar(sa.select(_changes.c.number)) or 0)
            rows = connection.execute(sa.select(_keys).where(_keys.c.revoked.is_(None)).order_by(_keys.c.id)).all()
        return number, {bytes.fromhex(row.secret_sha256): _key(row) for row in rows}

    def any(self, right: str) -> bool:
        """Whether some key that was not revoked has this right, for whatever model. One that has expired counts: what
        it kept closed does not open by itself. Raises AccessError."""
        checked_right(right)
        return any(gives(grant, right) for key in self.list() for grant in key.rights)


def _checked_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise AccessError(
            f"{name!r} cannot name {what}",
            hint="Letters, digits, '.', '_', '@' and '-', at most 64, beginning with a letter or a digit.",
            asked=name,
        )


def _checked(**wanted: Any) -> dict[str, Any]:
    """What may be changed of a key, where it is well written. Raises AccessError."""
    for field, value in wanted.items():
        if field == "team":
            if value:
                _checked_name(value, "a team")
        elif value is None:
            continue
        elif field == "expires":
            if not time.time() < value < _MOST:
                raise AccessError(
                    "the key would have expired already",
                    hint="`press keys revoke NAME` ends a key at once.",
                    expires=value,
                )
        elif type(value) is not int or not 0 < value <= _MOST:
            raise AccessError(
                f"{value!r} is no limit of {field.replace('_', ' ')}",
                hint="A whole number above 0, or none. `press keys revoke NAME` ends a key.",
                asked=value,
            )
    return wanted


def _count_change(connection: sa.Connection) -> None:
    # In the transaction of the change: who sees the number sees the change.
    connection.execute(_changes.update().values(number=_changes.c.number + 1))


def _hashed(secret: str) -> bytes:
    # Plain SHA-256: a secret of 256 random bits cannot be guessed, and the servers look at one with every request.
    return hashlib.sha256(secret.encode()).digest()


def _key(row: sa.Row[Any]) -> Key:
    found = {name: row._mapping[name] for name in Key.__slots__}
    return Key(**{**found, "rights": tuple(found["rights"])})
