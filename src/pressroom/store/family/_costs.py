"""What a file costs: the bytes that would come back if only it went."""

from __future__ import annotations

import sqlite3

from pressroom.store.family import _manifests as manifests
from pressroom.store.family import _queries as queries
from pressroom.store.family._parts import Parts
from pressroom.store.family._rebuilding import read_manifest


def marginal(parts: Parts, digest: str) -> int:
    """Stored bytes of the tensors that only this file needs. Raises NotFoundError and StoreError."""
    if parts.index.read(lambda c: queries.file_row(c, digest)) is None:
        parts.index.file_tensors(read_manifest(parts.place, digest))
    return parts.index.read(lambda c: _marginal(c, digest))


def _marginal(c: sqlite3.Connection, digest: str) -> int:
    row = c.execute("SELECT id, size, whole FROM files WHERE digest = ? AND NOT gone", (digest,)).fetchone()
    if row is None:
        return 0
    file, size, whole = row
    needed = queries.below(c, queries.tensors_of(c, file))
    going = {
        tensor
        for tensor in needed
        if c.execute(
            "SELECT 1 FROM file_tensors JOIN files f ON f.id = file WHERE tensor = ? AND file != ? AND NOT gone",
            (tensor, file),
        ).fetchone()
        is None
    }
    children = {
        tensor: [child for (child,) in c.execute("SELECT child FROM parents WHERE parent = ?", (tensor,))]
        for tensor in going
    }
    live = queries.live_rows(c)
    while True:
        staying = {t for t in going if any(child not in going and child in live for child in children[t])}
        if not staying:
            break
        going -= staying
    if whole:
        piece = manifests.whole_name_of(digest)
        others = c.execute(
            "SELECT tensor FROM segments JOIN pieces p ON p.id = piece WHERE p.name = ?", (piece,)
        ).fetchall()
        return size if all(tensor in going or tensor not in live for (tensor,) in others) else 0
    return sum(
        length
        for tensor in going
        for (length,) in c.execute("SELECT length FROM segments WHERE tensor = ? AND NOT plain", (tensor,))
    )
