"""The index from what lies in the place: the footers of packs and the manifests."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from pressroom.kernel.errors import NotFoundError, StoreError
from pressroom.store.base import is_digest
from pressroom.store.family import _filling as filling
from pressroom.store.family import _manifests as manifests
from pressroom.store.family import _packs as packs
from pressroom.store.family import _queries as queries
from pressroom.store.family._objects import Segment, Stored, StoredTensor
from pressroom.store.places.base import Place

_log = logging.getLogger(__name__)

# Reading a footer is two short reads: over a network they are worth doing side by side.
_AT_ONCE = 8


def refresh(c: sqlite3.Connection, place: Place) -> None:
    """Take in manifests that the index does not know with the tensors they need, and forget what is gone.

    Tensors that no manifest needs are left alone: whoever is putting them may still take them back. What cannot be read
    is left out with a warning: its tensors are missing until they are put again.
    """
    lying = dict(place.list(packs.FOLDER))
    lying |= {name: size for name, size in place.list(manifests.WHOLE_FOLDER) if not name.endswith(manifests.TABLE)}
    held = {name.rpartition("/")[2] for name, _ in place.list(manifests.FOLDER)}
    known = {name for (name,) in c.execute("SELECT name FROM pieces")}
    filling.drop_pieces(c, [n for n in known - lying.keys() if place.size(n) is None])
    listed = {digest for (digest,) in c.execute("SELECT digest FROM files WHERE NOT gone")}
    for digest in listed - held:
        # Asked for by name: a listing that is cut short must not let go of anything.
        if place.size(manifests.name_of(digest)) is None:
            filling.forget_file(c, digest)
    _add_files(c, place, {digest for digest in held - listed if is_digest(digest)})
    # First the pieces that are new; the others only where these did not have all that is missing.
    for names in (lying.keys() - known, lying.keys() & known):
        missing = queries.missing(c)
        if not missing:
            return
        bad = queries.damaged_copies(c)
        copies, found = _copies(place, {name: lying[name] for name in names}, bad)
        _add_copies(c, copies, missing, found)


def _copies(
    place: Place, sizes: dict[str, int], bad: set[bytes]
) -> tuple[dict[bytes, list[StoredTensor]], dict[str, Stored]]:
    """The whole copies of tensors in these pieces by identity, none of `bad`, shallow ones first; and the pieces."""

    def footer(item: tuple[str, int]) -> list[packs.Row]:
        try:
            if item[0].startswith(manifests.WHOLE_FOLDER):
                return read_table(place, *item)
            return packs.read_footer(place, *item)
        except (packs.BadPackError, manifests.BadManifestError, NotFoundError) as error:
            _log.warning("%s", error.message)
            return []

    tensors: dict[bytes, StoredTensor] = {}
    segments: dict[bytes, dict[int, Segment]] = {}
    pieces: dict[str, Stored] = {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for (name, size), rows in zip(sizes.items(), pool.map(footer, sizes.items()), strict=True):
            pieces[name] = Stored(name, size, sum(row.segment.length for row in rows))
            for row in rows:
                segments.setdefault(row.copy, {})[row.segment.first] = row.segment
                if row.tensor is not None:
                    tensors[row.copy] = row.tensor
    found: dict[bytes, list[StoredTensor]] = {}
    for copy, tensor in tensors.items():
        ordered = tuple(segment for _, segment in sorted(segments[copy].items()))
        made = replace(tensor, segments=ordered)
        if made.count and made.whole and copy not in bad:
            found.setdefault(tensor.id, []).append(made)
    for given in found.values():
        given.sort(key=lambda tensor: len(tensor.parents))
    return found, pieces


def _add_copies(
    c: sqlite3.Connection, copies: dict[bytes, list[StoredTensor]], missing: set[bytes], pieces: dict[str, Stored]
) -> None:
    """Take one copy of each missing tensor, parents before children: so none is told from itself in a circle."""
    waiting: dict[bytes, list[StoredTensor]] = {}
    wanted = list(missing)
    while wanted:
        identity = wanted.pop()
        if identity in copies and identity not in waiting:
            waiting[identity] = copies[identity]
            wanted += [parent for tensor in copies[identity] for parent in tensor.parents]
    ready = queries.sound_ids(c)
    while waiting:
        took = False
        for identity in list(waiting):
            fit = next((t for t in waiting[identity] if all(parent in ready for parent in t.parents)), None)
            if identity in ready:
                del waiting[identity]
                took = True
            elif fit is not None:
                filling.add_pieces(c, [pieces[segment.piece] for segment in fit.segments])
                filling.add_tensor(c, fit)
                ready.add(identity)
                del waiting[identity]
                took = True
        if not took:
            # What is left waits for parents that no pack has: these are noted as missing, and the rest goes on.
            lost = (
                {p for found in waiting.values() for tensor in found for p in tensor.parents} - waiting.keys() - ready
            )
            if not lost:
                return
            ready |= lost


def _add_files(c: sqlite3.Connection, place: Place, fresh: Iterable[str]) -> None:
    for digest in sorted(fresh):
        try:
            filling.add_file(c, read_manifest(place, digest))
        except (StoreError, NotFoundError) as error:
            _log.warning("%s", error.message)


def read_table(place: Place, name: str, size: int) -> list[packs.Row]:
    """What is in a file of weights that is stored whole, as a footer would say it.

    Raises:
        NotFoundError: nothing says it.
        BadManifestError: the piece or what is said of it was altered.
    """
    table = name + manifests.TABLE
    length = place.size(table)
    if length is None:
        raise NotFoundError(f"there is no piece {table}", hint="", asked=table)
    manifest = manifests.unpack_manifest(place.read(table, 0, length), name.rpartition("/")[2])
    if manifests.whole_name_of(manifest.digest) != name or manifest.size != size:
        raise manifests.BadManifestError(f"{table} is not what {name} holds", hint="Pull the model again.", piece=name)
    return [packs.Row(tensor.copy, tensor.segments[0], tensor) for tensor in manifest.stored_tensors()]


def read_manifest(place: Place, digest: str) -> manifests.Manifest:
    """The manifest of a file. Raises NotFoundError, BadManifestError and StoreError."""
    name = manifests.name_of(digest)
    size = place.size(name)
    if size is None:
        raise NotFoundError(f"there is no piece {name}", hint="", asked=name)
    return manifests.unpack_manifest(place.read(name, 0, size), digest)
