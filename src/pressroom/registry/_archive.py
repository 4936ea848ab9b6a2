"""The file that versions travel in: one header of records, the bytes, and a digest over all of it.

    20 bytes   "PRESSROOM-ARCHIVE 1" and a line feed
     8 bytes   length of the header, little-endian
     header    canonical JSON: {"blobs": [{"digest", "size"}...], "format": 1, "versions": [record...]}
     bytes     of every blob, in the order of the header, with nothing between them
    32 bytes   BLAKE3 of everything before

The header says how long the file is, so one that is cut or has something behind it is known before it is read. The same
versions make the same file, bit for bit. Everything in a header is distrusted.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from pressroom.kernel import PressroomError, is_name
from pressroom.registry._rows import checked_words, storable
from pressroom.registry.base import (
    KINDS,
    ArchiveError,
    Figure,
    FileEntry,
    Version,
    clashing,
    is_file_path,
    is_version_digest,
    manifest_digest,
)
from pressroom.store import Blob, is_digest

MAGIC = b"PRESSROOM-ARCHIVE 1\n"
LENGTH = struct.Struct("<Q")
TRAILER = 32

_FORMAT = 1
# Far above what thousands of versions need, far below what would fill the memory.
MOST_HEADER = 64 << 20
_MOST_SIZE = 1 << 62
_DEEPEST = 64
_MOST_NUMBER = (1 << 31) - 1
_TEXTS = {"source": 8_000, "unit": 40, "how": 8_000, "where": 8_000}
_DAMAGED = "It was altered on its way, or is no archive of Pressroom: fetch it again."


def header_of(versions: Sequence[Version]) -> tuple[bytes, list[Blob]]:
    """The header of an archive of these versions, and the blobs whose bytes follow it, in order."""
    blobs: dict[str, int] = {}
    for version in versions:
        for entry in version.files:
            blobs.setdefault(entry.blob, entry.size)
    record = {
        "format": _FORMAT,
        "versions": [_record(version) for version in versions],
        "blobs": [{"digest": digest, "size": size} for digest, size in blobs.items()],
    }
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    raw = text.encode()
    if len(raw) > MOST_HEADER:
        raise ArchiveError(
            f"the records of {len(versions)} versions take {len(raw)} bytes; an archive holds {MOST_HEADER}",
            hint="Export fewer at a time.",
        )
    return raw, [Blob(digest, size) for digest, size in blobs.items()]


def parse_header(raw: bytes) -> tuple[list[Version], list[Blob]]:
    """The versions and blobs a header names. Raises ArchiveError where anything in it is not as it must be."""
    try:
        found = json.loads(raw, parse_constant=_no_constant, object_pairs_hook=_no_repeats)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"the header of the archive is not JSON: {str(error)[:200]}", hint=_DAMAGED) from error
    fields = _fields(found, "the header", {"format", "versions", "blobs"})
    if fields["format"] != _FORMAT:
        raise ArchiveError(
            f"the archive has the format {fields['format']!r}; this Pressroom reads {_FORMAT}",
            hint="It was written by a newer Pressroom: upgrade.",
        )
    blobs: dict[str, int] = {}
    for each in _list(fields["blobs"], "blobs"):
        entry = _fields(each, "a blob", {"digest", "size"})
        digest, size = _text(entry["digest"], "digest"), _whole(entry["size"], "size", _MOST_SIZE)
        if not is_digest(digest) or digest in blobs:
            raise _lie(f"the digest {digest[:80]!r} is no digest or there twice")
        blobs[digest] = size
    versions = [_version(each) for each in _list(fields["versions"], "versions")]
    if not versions or len({(version.name, version.number) for version in versions}) != len(versions):
        raise _lie("it names no version, or one twice")
    needed: dict[str, int] = {}
    for version in versions:
        for file in version.files:
            if needed.setdefault(file.blob, file.size) != file.size:
                raise _lie(f"{file.path!r} has two sizes")
    if needed != blobs:
        raise _lie("the files of its versions are not the bytes it lists")
    return versions, [Blob(digest, size) for digest, size in blobs.items()]


def _record(version: Version) -> dict[str, Any]:
    """What travels: all that is said of a version, save the aliases. Which version is in production is decided here."""
    return {
        "name": version.name,
        "number": version.number,
        "digest": version.digest,
        "kind": version.kind,
        "parent": version.parent,
        "source": version.source,
        "created": version.created,
        "metadata": storable(version.metadata),  # rows of an older Pressroom may hold NaN
        "tags": version.tags,
        "description": version.description,
        "run": version.run,
        "files": [asdict(entry) for entry in version.files],
        "sheet": [asdict(figure) for figure in version.sheet],
    }


def _version(found: Any) -> Version:
    fields = _fields(found, "a version", set(_record(_EMPTY)))
    name, kind, parent = _text(fields["name"], "name"), _text(fields["kind"], "kind"), fields["parent"]
    if not is_name(name) or kind not in KINDS:
        raise _lie(f"{name[:80]!r} is no name, or {kind[:80]!r} no kind")
    if parent is not None and not is_version_digest(_text(parent, "parent")):
        raise _lie(f"the parent of {name} is {parent!r}")
    files = tuple(_file(each) for each in _list(fields["files"], "files"))
    if not files or clashing(entry.path for entry in files):
        raise _lie(f"{name} has no files, or two that cannot lie side by side")
    digest = _text(fields["digest"], "digest")
    if digest != manifest_digest(files):
        raise _lie(f"the files of {name} do not make the digest {digest[:80]!r}")
    metadata, tags = fields["metadata"], fields["tags"]
    if not isinstance(metadata, dict) or not isinstance(tags, dict):
        raise _lie(f"the metadata or tags of {name} are no records")
    _check_values(metadata)
    description, run = _text(fields["description"], "description"), _text(fields["run"], "run")
    try:
        checked_words({tag: _text(value, "a tag") for tag, value in tags.items()}, description, run)
    except PressroomError as error:
        raise _lie(error.message) from error
    return Version(
        name=name,
        number=_whole(fields["number"], "number", _MOST_NUMBER, least=1),
        digest=digest,
        kind=kind,
        files=files,
        parent=parent,
        source=_plain(fields["source"], "source"),
        created=_moment(fields["created"]),
        metadata=metadata,
        sheet=_sheet(_list(fields["sheet"], "sheet")),
        tags=dict(tags),
        description=description,
        run=run,
    )


def _file(found: Any) -> FileEntry:
    fields = _fields(found, "a file", {"path", "blob", "size"})
    path, blob = _text(fields["path"], "path"), _text(fields["blob"], "blob")
    if not is_file_path(path) or not is_digest(blob):
        raise _lie(f"{path[:80]!r} is no path inside a version, or its digest is none")
    return FileEntry(path=path, blob=blob, size=_whole(fields["size"], "size", _MOST_SIZE))


def _sheet(found: Iterable[Any]) -> tuple[Figure, ...]:
    figures: dict[str, Figure] = {}
    for each in found:
        fields = _fields(each, "a figure", {"name", "value", "unit", "how", "where", "at"})
        name, value = _text(fields["name"], "name"), fields["value"]
        if not name or not name.isprintable() or len(name) > 100 or name in figures:
            raise _lie(f"{name[:120]!r} is no name of a figure, or there twice")
        if isinstance(value, str):
            _plain(value, "how")
        elif isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
            raise _lie(f"the figure {name} is {value!r}")
        texts = {key: _plain(fields[key], key) for key in ("unit", "how", "where")}
        figures[name] = Figure(name=name, value=value, at=_moment(fields["at"]), **texts)
    return tuple(figures.values())


def _check_values(metadata: Any) -> None:
    """Nothing deeper than what header and config hold, and no number that no database keeps."""
    waiting = [(metadata, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > _DEEPEST:
            raise _lie(f"metadata is more than {_DEEPEST} levels deep")
        if isinstance(value, dict | list):
            waiting += [(each, depth + 1) for each in (value.values() if isinstance(value, dict) else value)]
        elif isinstance(value, float) and not math.isfinite(value):
            raise _lie(f"metadata has the number {value}")


def _fields(found: Any, what: str, names: set[str]) -> dict[str, Any]:
    if not isinstance(found, dict) or found.keys() != names:
        raise _lie(f"{what} must be a record of {', '.join(sorted(names))}")
    return found


def _list(found: Any, what: str) -> list[Any]:
    if not isinstance(found, list):
        raise _lie(f"{what} must be a list")
    return found


def _text(found: Any, what: str) -> str:
    if not isinstance(found, str) or re.search(r"[\ud800-\udfff\0]", found):
        raise _lie(f"{what} must be Unicode text")
    return found


def _plain(found: Any, what: str) -> str:
    """Text that a terminal shows and does not obey."""
    text = _text(found, what)
    if len(text) > _TEXTS[what] or re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text):
        raise _lie(f"{what} is too long or has control characters")
    return text


def _whole(found: Any, what: str, most: int, *, least: int = 0) -> int:
    if type(found) is not int or not least <= found <= most:
        raise _lie(f"{what} must be a whole number from {least} to {most}")
    return found


def _moment(found: Any) -> float:
    if type(found) not in (int, float) or not math.isfinite(found) or not 0 <= found < 1e12:
        raise _lie("a moment must be seconds since the epoch")
    return float(found)


def _lie(what: str) -> ArchiveError:
    return ArchiveError(f"the header of the archive cannot be true: {what}", hint=_DAMAGED)


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


_EMPTY = Version(name="", number=0, digest="", kind="", files=())
