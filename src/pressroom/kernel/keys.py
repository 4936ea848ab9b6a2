"""Keys: who may read, write and promote. The secret is shown once; the database holds its SHA-256 and nothing else.

A right is a word, and behind ':' a pattern of the models it is for ('*' stands for any letters, '/' too, '?' for one):

    read                 the hub answers
    write:smollm2*       push, tag and describe models whose names begin so; reading them comes with it
    promote:smollm2      move its aliases and change their floors; reading comes with it
    admin                all of these
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from pressroom.kernel.errors import NotFoundError, PressroomError, did_you_mean
from pressroom.kernel.workspace import Workspace

RIGHTS = ("read", "write", "promote", "admin")

_SECRET = re.compile(r"pr-[A-Za-z0-9_-]{43}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_PATTERN = re.compile(r"[A-Za-z0-9._/*?-]{1,200}")

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
)


def _first_table(connection: sa.Connection) -> None:
    _metadata.create_all(connection)


class AccessError(PressroomError):
    """A key that is not known, was revoked, or does not have the right; or a right that does not exist."""

    code = "access"


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A key as it is kept: `created` and `revoked` in seconds since the epoch, `rights` as they were written."""

    name: str
    rights: tuple[str, ...]
    created: float
    revoked: float | None = None

    def may(self, right: str, model: str) -> bool:
        """Whether it has this right for the model of that name. `admin` may all; every right brings reading with it.

        Raises:
            AccessError: there is no such right.
        """
        checked_right(right)
        if self.revoked is not None:
            return False
        return any(_covers(grant, right, model) for grant in self.rights)


class Keys:
    """The keys of one workspace. Thread-safe; several processes may use it at once."""

    def __init__(self, workspace: Workspace) -> None:
        self._database = workspace.database
        self._database.migrate("keys", (_first_table,))

    def create(self, name: str, rights: Iterable[str]) -> tuple[Key, str]:
        """Make a key; the second value is its secret, which cannot be had again.

        Raises:
            AccessError: the name is taken or cannot be one, a right does not exist, or there are none.
        """
        if not _NAME.fullmatch(name):
            raise AccessError(
                f"{name!r} cannot name a key",
                hint="Letters, digits, '.', '_', '@' and '-', at most 64, beginning with a letter or a digit.",
                asked=name,
            )
        granted = tuple(dict.fromkeys(checked_grant(right) for right in rights))
        if not granted:
            raise AccessError(
                f"the key {name!r} would have no right", hint=f"Name one: --right {' or --right '.join(RIGHTS)}."
            )
        secret = f"pr-{secrets.token_urlsafe(32)}"
        made = Key(name=name, rights=granted, created=time.time())
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
            connection.execute(
                _keys.insert().values(
                    name=name, secret_sha256=_hashed(secret), rights=list(granted), created=made.created
                )
            )
        return made, secret

    def find(self, secret: str) -> Key | None:
        """The key with this secret; None where there is none, or where it was revoked."""
        if not _SECRET.fullmatch(secret):
            return None
        hashed = _hashed(secret)
        with self._database.reading() as connection:
            row = connection.execute(sa.select(_keys).where(_keys.c.secret_sha256 == hashed)).one_or_none()
        # The look-up is by a hash: how long it takes says nothing of a secret.
        return None if row is None or row.revoked is not None else _key(row)

    def require(self, secret: str, right: str, model: str) -> Key:
        """The key with this secret, if it has the right for the model.

        Raises:
            AccessError: no key has this secret, it was revoked, or it lacks the right.
        """
        found = self.find(secret)
        if found is None:
            raise AccessError(
                "the key is not known here, or was revoked",
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
        """The keys that open something, in the order they were made; with `revoked` also those that did once."""
        query = sa.select(_keys).order_by(_keys.c.id)
        with self._database.reading() as connection:
            rows = connection.execute(query if revoked else query.where(_keys.c.revoked.is_(None))).all()
        return [_key(row) for row in rows]

    def revoke(self, name: str) -> Key:
        """End a key; from now on its secret is refused everywhere. Raises NotFoundError."""
        at = time.time()
        live = (_keys.c.name == name) & _keys.c.revoked.is_(None)
        with self._database.begin() as connection:
            row = connection.execute(sa.select(_keys).where(live)).one_or_none()
            if row is not None:
                connection.execute(_keys.update().where(live).values(revoked=at))
        if row is None:
            known = [key.name for key in self.list()]
            raise NotFoundError(
                f"there is no key called {name!r}",
                hint=did_you_mean(name, known, otherwise="`press keys list` shows them."),
                asked=name,
                known=known,
            )
        return Key(name=row.name, rights=tuple(row.rights), created=row.created, revoked=at)

    def any(self, right: str) -> bool:
        """Whether some key that was not revoked has this right, for whatever model. Raises AccessError."""
        checked_right(right)
        return any(_gives(grant.partition(":")[0], right) for key in self.list() for grant in key.rights)


def checked_right(right: str) -> str:
    """The right, where there is one called so. Raises AccessError."""
    if right not in RIGHTS:
        raise AccessError(
            f"there is no right {right!r}",
            hint=f"There are {', '.join(RIGHTS)}, and behind ':' the models one is for: write:smollm2*.",
            asked=right,
            known=list(RIGHTS),
        )
    return right


def checked_grant(text: str) -> str:
    """A right as it is granted, `RIGHT` or `RIGHT:PATTERN`, where it is well written. Raises AccessError."""
    word, colon, pattern = text.partition(":")
    checked_right(word)
    if colon and not _PATTERN.fullmatch(pattern):
        raise AccessError(
            f"{pattern!r} in the right {text!r} is not a pattern of model names",
            hint="Letters, digits, '.', '_', '-' and '/', with '*' for any letters and '?' for one: write:smollm2*.",
            asked=text,
        )
    return text


def _gives(word: str, right: str) -> bool:
    """Whether one right brings another: `admin` all, and whoever may do anything may read."""
    return word in (right, "admin") or right == "read"


def _covers(grant: str, right: str, model: str) -> bool:
    word, _, pattern = grant.partition(":")
    if not _gives(word, right):
        return False
    return not pattern or fnmatch.fnmatchcase(model, pattern)


def _hashed(secret: str) -> str:
    # Plain SHA-256: a secret of 256 random bits cannot be guessed, and the hub looks at one with every request.
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(row: sa.Row[Any]) -> Key:
    return Key(name=row.name, rights=tuple(row.rights), created=row.created, revoked=row.revoked)
