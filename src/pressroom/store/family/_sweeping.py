"""Giving back the space of what was deleted, while others read on.

First, with nobody putting: what no manifest needs is taken out of the index, and packs that hold nothing else, or
that the index never came to know, are deleted. Then, beside whoever puts: packs of which less than half is needed are
written anew. A reader that has a pack open reads on; one that comes for it later looks into the index again.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field

from pressroom.kernel.errors import NotFoundError, StoreError
from pressroom.store.base import Kept, Swept, is_digest
from pressroom.store.family import _filling as filling
from pressroom.store.family import _manifests as manifests
from pressroom.store.family import _packs as packs
from pressroom.store.family import _queries as queries
from pressroom.store.family._guard import one_sweep
from pressroom.store.family._objects import Segment, Stored, StoredTensor, check_of
from pressroom.store.family._parts import Parts
from pressroom.store.family._pieces import Pieces
from pressroom.store.family._rebuilding import read_manifest, read_table

_log = logging.getLogger(__name__)

_LIVE = 0.5


@dataclass
class _Plan:
    """What goes: pieces with their sizes, tensors by row number; packs to be written anew; what has to stay."""

    pieces: dict[str, int] = field(default_factory=dict)
    tensors: list[int] = field(default_factory=list)
    packs: dict[str, int] = field(default_factory=dict)
    live: int = 0
    kept: tuple[Kept, ...] = ()


def sweep(parts: Parts, *, dry_run: bool = False, wait_s: float | None = None) -> Swept:
    """Give back what can be given back.

    Raises:
        LockedError: another sweep runs, or somebody has been putting files all the time.
        StoreFullError: there is no room to write a pack anew; what was deleted until then stays deleted.
        StoreError: it cannot be told what is needed, because something cannot be read; nothing was deleted.
    """
    with one_sweep(parts.home):
        with parts.sweeping(wait_s):
            parts.index.refresh()
            plan = _planned(parts, strict=True)
            if dry_run:
                freed = sum(plan.pieces.values()) + sum(plan.packs.values()) - plan.live
                return Swept(freed, plan.live, plan.kept)
            parts.index.write(lambda c: _forget(c, plan))
            for name in plan.pieces:
                parts.place.delete(name)
        rewritten, moved = _rewrite(parts, plan.packs)
        parts.index.checkpoint()
    return Swept(sum(plan.pieces.values()) + rewritten, moved, plan.kept)


def reclaimable(parts: Parts) -> int:
    """Bytes that a sweep would give back now, about: who is putting meanwhile is not waited for."""
    plan = _planned(parts, strict=False)
    return sum(plan.pieces.values()) + sum(plan.packs.values()) - plan.live


def _planned(parts: Parts, *, strict: bool) -> _Plan:
    """What goes, as the index knows it. `strict`: nobody is putting, and what the index does not know is looked at."""
    lying = dict(parts.place.list(packs.FOLDER)) | dict(parts.place.list(manifests.WHOLE_FOLDER))
    tables = {name: lying.pop(name) for name in list(lying) if name.endswith(manifests.TABLE)}
    plan = parts.index.read(lambda c: _plan(c, lying))
    if not strict:
        return plan
    held = {name.rpartition("/")[2] for name, _ in parts.place.list(manifests.FOLDER)}
    unknown, missing, known = parts.index.read(
        lambda c: (held - queries.held_files(c), queries.missing(c), queries.piece_names(c))
    )
    for digest in unknown:
        if is_digest(digest):
            manifest = read_manifest(parts.place, digest)  # why the index could not take it in is the error to raise
            raise StoreError(f"the manifest of {manifest.digest} is not in the index", hint="Run `press gc` again.")
    for name in lying.keys() - known:
        if _may_go(parts, name, lying[name], held, missing):
            plan.pieces[name] = lying[name]
    for name, size in tables.items():
        piece = name.removesuffix(manifests.TABLE)
        if piece in plan.pieces or piece not in lying:
            plan.pieces[name] = size
    return plan


def _may_go(parts: Parts, name: str, size: int, held: set[str], missing: set[bytes]) -> bool:
    """Whether a piece that the index does not know was left by somebody who was killed."""
    whole = name.startswith(manifests.WHOLE_FOLDER)
    if whole and name.rpartition("/")[2] in held:
        return False
    try:
        rows = read_table(parts.place, name, size) if whole else packs.read_footer(parts.place, name, size)
        return not any(row.tensor and row.tensor.id in missing for row in rows)
    except NotFoundError:
        return True  # nothing says what is in it: whoever wrote it was killed
    except (packs.BadPackError, manifests.BadManifestError) as error:
        _log.warning("%s; it is left alone", error.message)
        return False


def _plan(c: sqlite3.Connection, lying: dict[str, int]) -> _Plan:
    wanted = [row for (row,) in c.execute("SELECT id FROM files WHERE NOT gone")]
    c.execute("CREATE TEMP TABLE IF NOT EXISTS live (id INTEGER PRIMARY KEY, direct INTEGER)")
    c.execute("DELETE FROM live")
    c.execute("INSERT INTO live SELECT DISTINCT tensor, 1 FROM file_tensors JOIN files f ON f.id = file WHERE NOT gone")
    c.execute(
        "WITH RECURSIVE need (id) AS (SELECT id FROM live UNION "
        "SELECT parent FROM parents JOIN need ON child = need.id) "
        "INSERT OR IGNORE INTO live SELECT id, 0 FROM need"
    )
    plan = _Plan()
    plan.tensors = [row for (row,) in c.execute("SELECT id FROM tensors WHERE id NOT IN (SELECT id FROM live)")]
    whole = {manifests.whole_name_of(digest) for (digest,) in c.execute("SELECT digest FROM files WHERE NOT gone")}
    for name, payload, live, tainted in c.execute(
        "SELECT name, payload, coalesce(sum(CASE WHEN live.id IS NULL THEN 0 ELSE length END), 0), tainted "
        "FROM pieces p LEFT JOIN segments ON piece = p.id LEFT JOIN live ON live.id = tensor GROUP BY p.id"
    ).fetchall():
        if name not in lying or name in whole:
            continue
        if not live:
            plan.pieces[name] = lying[name]
        elif name.startswith(packs.FOLDER) and (live < _LIVE * payload or tainted):
            plan.packs[name] = lying[name]
            plan.live += live + (lying[name] - payload) * live // max(1, payload)
    plan.kept = _kept(c, wanted)
    return plan


def _kept(c: sqlite3.Connection, wanted: Iterable[int]) -> tuple[Kept, ...]:
    """What stays of deleted files: tensors that no held file has, and others are told from."""
    held = set(wanted)
    found: dict[str, tuple[int, set[int]]] = {}
    for row, size in c.execute(
        "SELECT live.id, coalesce(sum(length), 0) FROM live LEFT JOIN segments ON tensor = live.id WHERE NOT direct "
        "GROUP BY live.id"
    ).fetchall():
        came = c.execute(
            "SELECT digest FROM files f JOIN file_tensors ON file = f.id WHERE tensor = ? ORDER BY f.id LIMIT 1", (row,)
        ).fetchone()
        users = {
            file
            for (file,) in c.execute(
                "WITH RECURSIVE need (id) AS (SELECT ? UNION SELECT child FROM parents JOIN need ON parent = need.id) "
                "SELECT DISTINCT file FROM need JOIN file_tensors ON tensor = need.id",
                (row,),
            )
            if file in held
        }
        before, others = found.get(came[0] if came else "", (0, set()))
        found[came[0] if came else ""] = (before + size, others | users)
    names = dict(c.execute("SELECT id, digest FROM files"))
    return tuple(Kept(digest, size, tuple(sorted(names[u] for u in users))) for digest, (size, users) in found.items())


def _forget(c: sqlite3.Connection, plan: _Plan) -> None:
    rows = [(row,) for row in plan.tensors]
    for statement in (
        "DELETE FROM segments WHERE tensor = ?",
        "DELETE FROM parents WHERE child = ?",
        "DELETE FROM file_tensors WHERE tensor = ?",
        "DELETE FROM tensors WHERE id = ?",
    ):
        c.executemany(statement, rows)
    filling.drop_pieces(c, plan.pieces)
    c.execute("DELETE FROM files WHERE gone AND id NOT IN (SELECT file FROM file_tensors)")
    c.execute("DELETE FROM layouts WHERE id NOT IN (SELECT layout FROM files)")


def _rewrite(parts: Parts, names: dict[str, int]) -> tuple[int, int]:
    """Write what is needed of these packs into new ones; returns the bytes given back and those moved."""
    rows = parts.index.read(lambda c: [(name, _segments(c, name)) for name in names])
    moved: list[tuple[int, Segment, tuple[Segment, ...]]] = []
    gone: list[str] = []
    with packs.PackWriter(parts.place) as writer:
        pieces = Pieces(parts.place)
        for name, segments in rows:
            sound = True
            for _, _, segment in segments:
                sound = sound and _is_whole(pieces, segment)
            if not sound:
                continue  # the damage is found and named by verifying; nothing is lost by moving
            for row, tensor, segment in segments:
                writer.begin(tensor.copy, first=segment.first)
                for at, block in enumerate(segment.blocks):
                    writer.block(bytes(pieces.read(name, segment.starts[at], block.stored)), block)
                moved.append((row, segment, writer.end(tensor)))
            gone.append(name)
        writer.close()
        made = list(writer.packs)
        parts.index.write(lambda c: _move(c, made, moved))
        writer.keep()
        pieces.close()
    freed = 0
    for name in gone:
        parts.place.delete(name)
        freed += names[name]
    parts.index.write(lambda c: filling.drop_pieces(c, gone))
    return freed - sum(pack.size for pack in made), sum(segment.length for _, segment, _ in moved)


def _is_whole(pieces: Pieces, segment: Segment) -> bool:
    try:
        return all(
            check_of(pieces.read(segment.piece, segment.starts[at], block.stored)) == block.check
            for at, block in enumerate(segment.blocks)
        )
    except (NotFoundError, StoreError):
        return False


def _segments(c: sqlite3.Connection, name: str) -> list[tuple[int, StoredTensor, Segment]]:
    """Tensors by row number with their segments in a pack, in the order in which they lie."""
    rows = [
        row
        for (row,) in c.execute(
            "SELECT DISTINCT tensor FROM segments JOIN pieces p ON p.id = piece WHERE p.name = ?", (name,)
        )
    ]
    numbers = dict(
        c.execute("SELECT digest, id FROM tensors WHERE id IN (SELECT value FROM json_each(?))", (json.dumps(rows),))
    )
    found = [
        (numbers[tensor.id], tensor, segment)
        for tensor in queries.closure(c, rows).values()
        if tensor.id in numbers
        for segment in tensor.segments
        if segment.piece == name
    ]
    return sorted(found, key=lambda entry: entry[2].offset)


def _move(c: sqlite3.Connection, made: list[Stored], moved: list[tuple[int, Segment, tuple[Segment, ...]]]) -> None:
    filling.add_pieces(c, made)
    for row, old, new in moved:
        done = c.execute(
            "DELETE FROM segments WHERE tensor = ? AND first = ? AND piece = (SELECT id FROM pieces WHERE name = ?)",
            (row, old.first, old.piece),
        )
        if done.rowcount:  # else somebody stored the tensor anew meanwhile
            filling.add_segments(c, row, new)
