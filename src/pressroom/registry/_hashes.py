"""SHA-256 of bytes of the store: what other hubs and their clients name a file by."""

from __future__ import annotations

import hashlib
import re

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from pressroom.kernel.database import Database
from pressroom.registry import _tables as tables
from pressroom.store import Store, checked_digest

_HEX = re.compile(r"[0-9a-f]{64}")
_CHUNK = 4 << 20


def sha256(database: Database, store: Store, blob: str) -> str:
    with database.reading() as connection:
        known = connection.scalar(sa.select(tables.hashes.c.sha256).where(tables.hashes.c.blob == blob))
    if known is not None:
        return str(known)
    hasher = hashlib.sha256()
    with store.open(blob) as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    found = hasher.hexdigest()
    remember(database, blob, found)
    return found


def by_sha256(database: Database, store: Store, hexadecimal: str) -> str | None:
    with database.reading() as connection:
        found = [*connection.scalars(sa.select(tables.hashes.c.blob).where(tables.hashes.c.sha256 == hexadecimal))]
    return next((str(blob) for blob in found if store.size(blob) is not None), None)


def remember(database: Database, blob: str, hexadecimal: str) -> None:
    if not _HEX.fullmatch(hexadecimal):
        raise ValueError(f"{hexadecimal!r} is not a SHA-256 in hexadecimal")
    checked_digest(blob)
    same = tables.hashes.c.blob == blob
    try:
        with database.begin() as connection:
            if not connection.execute(tables.hashes.update().where(same).values(sha256=hexadecimal)).rowcount:
                connection.execute(tables.hashes.insert().values(blob=blob, sha256=hexadecimal))
    except IntegrityError:
        pass  # another process found the same at the same moment


def forget(database: Database, blob: str) -> None:
    with database.begin() as connection:
        connection.execute(tables.hashes.delete().where(tables.hashes.c.blob == blob))
