"""What is written into the index. Every function works inside a transaction of the caller."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable

from blake3 import blake3

from pressroom.store.family._manifests import Manifest
from pressroom.store.family._objects import Segment, Stored, StoredTensor, pack_blocks
from pressroom.store.family._queries import below, first_of, sound


def add_pieces(c: sqlite3.Connection, pieces: Iterable[Stored]) -> None:
    """Take in packs and whole files."""
    c.executemany(
        "INSERT INTO pieces (name, size, payload) VALUES (?, ?, ?) "
        "ON CONFLICT (name) DO UPDATE SET size = excluded.size, payload = excluded.payload",
        [(piece.name, piece.size, piece.payload) for piece in pieces],
    )


def add_tensor(c: sqlite3.Connection, tensor: StoredTensor) -> bool:
    """Take in a tensor; False where it is known soundly, or telling it so would be from itself.

    One that is told from what was found damaged is replaced: that may never come back.
    """
    known = c.execute("SELECT id, damaged FROM tensors WHERE digest = ?", (tensor.id,)).fetchone()
    if known is not None and sound(c, [known[0]]):
        return False
    parents = [_row_of(c, parent) for parent in tensor.parents]
    if known is not None and known[0] in below(c, parents):
        return False
    depth = 0
    for parent in parents:
        depth = max(depth, 1 + c.execute("SELECT depth FROM tensors WHERE id = ?", (parent,)).fetchone()[0])
    number = _row_of(c, tensor.id)
    # A copy that was found damaged lies on in its pack: the next sweep writes that anew without it.
    c.execute(
        "UPDATE pieces SET tainted = 1 WHERE id IN (SELECT piece FROM segments WHERE tensor = ? AND NOT plain)",
        (number,),
    )
    c.execute("DELETE FROM segments WHERE tensor = ?", (number,))
    c.execute("DELETE FROM parents WHERE child = ?", (number,))
    first = first_of(tensor.segments[0].blocks[0].raw) if tensor.segments else 0
    c.execute(
        "UPDATE tensors SET dtype = ?, row = ?, nbytes = ?, block = ?, depth = ?, recipe = ?, first = ?, copy = ?, "
        "damaged = 0 "
        "WHERE id = ?",
        (tensor.dtype, tensor.row, tensor.nbytes, tensor.block, depth, tensor.recipe, first, tensor.copy, number),
    )
    c.executemany("INSERT INTO parents VALUES (?, ?, ?)", [(number, n, parent) for n, parent in enumerate(parents)])
    add_segments(c, number, tensor.segments)
    return True


def add_segments(c: sqlite3.Connection, number: int, segments: Iterable[Segment]) -> None:
    """Say where blocks of a tensor, given by row number, lie."""
    for segment in segments:
        blocks = pack_blocks(segment.blocks)
        c.execute(
            "INSERT INTO segments SELECT ?, ?, id, ?, ?, ?, ? FROM pieces WHERE name = ?",
            (number, segment.first, segment.offset, segment.length, segment.plain, blocks, segment.piece),
        )


def add_file(c: sqlite3.Connection, manifest: Manifest) -> None:
    """Take in a file; tensors that are not known are noted as missing."""
    rows = [[t.name, t.dtype, t.shape, t.nbytes] for t in manifest.tensors]
    body = json.dumps(rows, separators=(",", ":")).encode()
    digest = blake3(body).digest()
    c.execute("INSERT OR IGNORE INTO layouts (digest, body) VALUES (?, ?)", (digest, zlib.compress(body, 9)))
    layout = c.execute("SELECT id FROM layouts WHERE digest = ?", (digest,)).fetchone()[0]
    known = c.execute("SELECT id FROM files WHERE digest = ?", (manifest.digest,)).fetchone()
    if known is not None:
        c.execute("DELETE FROM file_tensors WHERE file = ?", known)
        c.execute("DELETE FROM files WHERE id = ?", known)
    file = c.execute(
        "INSERT INTO files (digest, size, layout, whole, probe, sketch) VALUES (?, ?, ?, ?, ?, ?)",
        (manifest.digest, manifest.size, layout, manifest.whole, manifest.probe, manifest.sketch),
    ).lastrowid
    c.executemany(
        "INSERT INTO file_tensors VALUES (?, ?, ?)",
        [
            (file, position, _row_of(c, identity))
            for position, (identity, tensor) in enumerate(zip(manifest.ids, manifest.tensors, strict=True))
            if tensor.nbytes
        ],
    )


def forget_file(c: sqlite3.Connection, digest: str) -> None:
    """The file is deleted. It is remembered until nobody needs its tensors, so that a sweep can say why they stay."""
    c.execute("UPDATE files SET gone = 1 WHERE digest = ?", (digest,))


def flag(c: sqlite3.Connection, ids: Iterable[bytes]) -> None:
    """These tensors were found damaged: putting a file that has them stores them again, and these copies of them are
    never taken again."""
    rows = [(identity,) for identity in ids]
    c.executemany("UPDATE tensors SET damaged = 1 WHERE digest = ?", rows)
    c.executemany(
        "INSERT OR IGNORE INTO bad_copies SELECT copy FROM tensors WHERE digest = ? AND copy != x''",
        rows,
    )


def flag_file(c: sqlite3.Connection, digest: str) -> None:
    """The file was found damaged outside of its tensors: putting it stores it again."""
    c.execute("UPDATE files SET damaged = 1 WHERE digest = ?", (digest,))


def drop_pieces(c: sqlite3.Connection, names: Iterable[str]) -> None:
    """These pieces are gone; tensors that had blocks in them are noted as missing."""
    for name in names:
        row = c.execute("SELECT id FROM pieces WHERE name = ?", (name,)).fetchone()
        if row is not None:
            c.execute("UPDATE tensors SET damaged = 1 WHERE id IN (SELECT tensor FROM segments WHERE piece = ?)", row)
            c.execute("DELETE FROM segments WHERE piece = ?", row)
            c.execute("DELETE FROM pieces WHERE id = ?", row)


def _row_of(c: sqlite3.Connection, identity: bytes) -> int:
    """The row number of a tensor, one noted as missing where it is not known."""
    row = c.execute("SELECT id FROM tensors WHERE digest = ?", (identity,)).fetchone()
    if row is None:
        row = (
            c.execute(
                "INSERT INTO tensors (digest, dtype, row, nbytes, block, depth, first, damaged) "
                "VALUES (?, '', 0, 0, 0, 0, 0, 1)",
                (identity,),
            ).lastrowid,
        )
    number: int = row[0]
    return number


def taint(c: sqlite3.Connection, names: Iterable[str]) -> None:
    """Have these packs written anew by the next sweep."""
    c.executemany("UPDATE pieces SET tainted = 1 WHERE name = ?", [(name,) for name in names])
