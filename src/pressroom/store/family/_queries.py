"""What is asked of the index. Every function works inside a transaction of the caller."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from pressroom.store.family._objects import Segment, StoredTensor, unpack_blocks
from pressroom.store.formats import TensorInfo

# SQLite of some distributions takes 999 values in one statement.
_MOST_IN_ONE = 900

# A layout: the tensors of a file, without their places.
Layout = list[TensorInfo]


class Relative(NamedTuple):
    """A held file that a new one may be derived from."""

    digest: str
    layout: int
    sketch: bytes


class Place(NamedTuple):
    """Where a tensor occurs: the file and its number there."""

    digest: str
    position: int


def first_of(digest: bytes) -> int:
    """The key by which a tensor is found from the digest of its first block."""
    return int.from_bytes(digest[:8], "little", signed=True)


def ids_of(c: sqlite3.Connection, digests: Iterable[bytes]) -> list[int]:
    """The row numbers of tensors, as far as they are known."""
    found: dict[bytes, int] = {}
    wanted = list(dict.fromkeys(digests))
    for some, marks in _some(wanted):
        found.update(c.execute(f"SELECT digest, id FROM tensors WHERE digest IN ({marks})", some))  # noqa: S608
    return [found[digest] for digest in wanted if digest in found]


def _some(digests: Iterable[bytes]) -> Iterator[tuple[list[bytes], str]]:
    """The digests, as many at a time as a statement takes, and the marks for them."""
    rest = iter(digests)
    while some := list(islice(rest, _MOST_IN_ONE)):
        yield some, ",".join("?" * len(some))


def closure(c: sqlite3.Connection, rows: Sequence[int]) -> dict[bytes, StoredTensor]:
    """Tensors by row number with everything that they are told from, complete with blocks."""
    c.execute("CREATE TEMP TABLE IF NOT EXISTS wanted (id INTEGER PRIMARY KEY)")
    c.execute("DELETE FROM wanted")
    c.execute(
        "WITH RECURSIVE need (id) AS (SELECT value FROM json_each(?) UNION "
        "SELECT parent FROM parents JOIN need ON child = need.id) INSERT INTO wanted SELECT id FROM need",
        (json.dumps(list(rows)),),
    )
    parents: dict[int, list[bytes]] = {}
    for child, digest in c.execute(
        "SELECT child, digest FROM parents JOIN wanted ON child = wanted.id JOIN tensors t ON parent = t.id "
        "ORDER BY child, position"
    ):
        parents.setdefault(child, []).append(digest)
    segments: dict[int, list[Segment]] = {}
    for tensor, first, name, offset, plain, blocks in c.execute(
        "SELECT tensor, first, name, offset, plain, blocks FROM segments JOIN wanted ON tensor = wanted.id "
        "JOIN pieces ON piece = pieces.id ORDER BY tensor, first"
    ):
        segments.setdefault(tensor, []).append(Segment(first, name, offset, unpack_blocks(blocks), bool(plain)))
    return {
        digest: StoredTensor(
            id=digest,
            dtype=dtype,
            row=row,
            nbytes=nbytes,
            block=block,
            parents=tuple(parents.get(number, ())),
            recipe=recipe,
            depth=depth,
            segments=tuple(segments.get(number, ())),
            copy=copy,
            sound=not damaged,
        )
        for number, digest, dtype, row, nbytes, block, depth, recipe, copy, damaged in c.execute(
            "SELECT t.id, digest, dtype, row, nbytes, block, depth, recipe, copy, damaged "
            "FROM tensors t JOIN wanted ON t.id = wanted.id"
        )
    }


def like(c: sqlite3.Connection, first: bytes, nbytes: int) -> set[bytes]:
    """Tensors of this length whose first block has this digest, if that and all below them are sound."""
    rows = c.execute(
        "SELECT id, digest FROM tensors WHERE first = ? AND nbytes = ? AND NOT damaged", (first_of(first), nbytes)
    ).fetchall()
    return {digest for number, digest in rows if sound(c, [number])}


def held_files(c: sqlite3.Connection) -> set[str]:
    """The digests of all files that are held, as far as the index knows."""
    return {digest for (digest,) in c.execute("SELECT digest FROM files WHERE NOT gone")}


def piece_names(c: sqlite3.Connection) -> set[str]:
    """The packs and whole files that the index knows."""
    return {name for (name,) in c.execute("SELECT name FROM pieces")}


def missing(c: sqlite3.Connection) -> set[bytes]:
    """Tensors that are damaged or that somebody refers to and no piece is known to have."""
    return {digest for (digest,) in c.execute("SELECT digest FROM tensors WHERE damaged")}


def damaged_copies(c: sqlite3.Connection) -> set[bytes]:
    """The names of copies that were found damaged."""
    return {copy for (copy,) in c.execute("SELECT copy FROM bad_copies")}


def depths(c: sqlite3.Connection, digests: Iterable[bytes]) -> dict[bytes, int]:
    """How deep these tensors lie, of those that are not known to be damaged."""
    return {
        digest: depth
        for some, marks in _some(digests)
        for digest, depth in c.execute(
            f"SELECT digest, depth FROM tensors WHERE NOT damaged AND digest IN ({marks})",  # noqa: S608
            some,
        )
    }


def sound_ids(c: sqlite3.Connection) -> set[bytes]:
    """All tensors that are not known to be damaged."""
    return {digest for (digest,) in c.execute("SELECT digest FROM tensors WHERE NOT damaged")}


def below(c: sqlite3.Connection, rows: Sequence[int]) -> set[int]:
    """These tensors and all that they are told from, by row number."""
    return {
        number
        for (number,) in c.execute(
            "WITH RECURSIVE need (id) AS (SELECT value FROM json_each(?) UNION "
            "SELECT parent FROM parents JOIN need ON child = need.id) SELECT id FROM need",
            (json.dumps(list(rows)),),
        )
    }


def live_rows(c: sqlite3.Connection) -> set[int]:
    """Tensors that held files need, by row number."""
    return below(
        c,
        [
            row
            for (row,) in c.execute(
                "SELECT DISTINCT tensor FROM file_tensors JOIN files f ON f.id = file WHERE NOT gone"
            )
        ],
    )


def sound(c: sqlite3.Connection, rows: Sequence[int]) -> bool:
    """Whether none of these tensors, and none that they are told from, is known to be damaged."""
    found = c.execute(
        "WITH RECURSIVE need (id) AS (SELECT value FROM json_each(?) UNION "
        "SELECT parent FROM parents JOIN need ON child = need.id) "
        "SELECT 1 FROM need JOIN tensors t ON t.id = need.id WHERE damaged LIMIT 1",
        (json.dumps(list(rows)),),
    )
    return found.fetchone() is None


def file_row(c: sqlite3.Connection, digest: str) -> tuple[int, int] | None:
    """Row number and size of a file that is held."""
    found: tuple[int, int] | None = c.execute(
        "SELECT id, size FROM files WHERE digest = ? AND NOT gone", (digest,)
    ).fetchone()
    return found


def is_flagged(c: sqlite3.Connection, digest: str) -> bool:
    """Whether the file was found damaged outside of its tensors."""
    return c.execute("SELECT 1 FROM files WHERE digest = ? AND damaged", (digest,)).fetchone() is not None


def lengths(c: sqlite3.Connection) -> set[int]:
    """The lengths that held tensors have."""
    return {length for (length,) in c.execute("SELECT DISTINCT nbytes FROM tensors")}


def tensors_of(c: sqlite3.Connection, file: int) -> list[int]:
    """The row numbers of a file's tensors."""
    return [row for (row,) in c.execute("SELECT tensor FROM file_tensors WHERE file = ?", (file,))]


def known_probe(c: sqlite3.Connection, size: int, probe: bytes) -> bool:
    """Whether a held file has this size and these samples."""
    found = c.execute("SELECT 1 FROM files WHERE size = ? AND probe = ? AND NOT gone LIMIT 1", (size, probe))
    return found.fetchone() is not None


def layouts(c: sqlite3.Connection) -> dict[int, Layout]:
    """The different layouts of held files; there are few, as models of one kind share theirs."""
    return {
        number: [
            TensorInfo(name=name, dtype=dtype, shape=tuple(shape), offset=0, nbytes=nbytes)
            for name, dtype, shape, nbytes in json.loads(zlib.decompress(body))
        ]
        for number, body in c.execute(
            "SELECT id, body FROM layouts l WHERE EXISTS (SELECT 1 FROM files WHERE layout = l.id AND NOT gone)"
        ).fetchall()
    }


def relatives(c: sqlite3.Connection, layout: int) -> list[Relative]:
    """Held files of a layout, oldest first."""
    return [
        Relative(*row)
        for row in c.execute(
            "SELECT digest, layout, sketch FROM files WHERE layout = ? AND NOT gone ORDER BY id", (layout,)
        )
    ]


def files_of(c: sqlite3.Connection, layout: int) -> list[tuple[int, str]]:
    """Held files of a layout: row number, which rises with time, and digest."""
    return c.execute("SELECT id, digest FROM files WHERE layout = ? AND NOT gone", (layout,)).fetchall()


def with_depths(c: sqlite3.Connection, digest: str) -> dict[int, tuple[bytes, int, bool]]:
    """The tensors of a file by position: identity, depth, and whether it may be used."""
    return {
        position: (found, depth, not damaged)
        for position, found, depth, damaged in c.execute(
            "SELECT position, t.digest, depth, t.damaged FROM files f JOIN file_tensors ON file = f.id "
            "JOIN tensors t ON t.id = tensor WHERE f.digest = ? AND NOT gone",
            (digest,),
        )
    }


def places_of(c: sqlite3.Connection, ids: Iterable[bytes], files: Sequence[str]) -> dict[bytes, Place]:
    """One place of each tensor among these files, where it has one."""
    wanted = json.dumps(list(files))
    return {
        identity: Place(digest, position)
        for some, marks in _some(ids)
        for identity, digest, position in c.execute(
            "SELECT t.digest, f.digest, position FROM tensors t JOIN file_tensors ON tensor = t.id "  # noqa: S608
            "JOIN files f ON f.id = file WHERE NOT gone AND f.digest IN (SELECT value FROM json_each(?)) "
            f"AND t.digest IN ({marks})",
            (wanted, *some),
        )
    }


def affected(c: sqlite3.Connection, ids: Iterable[bytes]) -> list[str]:
    """Held files that cannot be rebuilt without these tensors."""
    return [
        digest
        for (digest,) in c.execute(
            "WITH RECURSIVE need (id) AS (SELECT value FROM json_each(?) UNION "
            "SELECT child FROM parents JOIN need ON parent = need.id) "
            "SELECT DISTINCT digest FROM need JOIN file_tensors ON tensor = need.id JOIN files f ON f.id = file "
            "WHERE NOT gone ORDER BY f.id",
            (json.dumps(ids_of(c, ids)),),
        )
    ]
