"""Versions as rows: read, written and removed inside a transaction that the caller holds."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from pressroom.kernel import NotFoundError, Ref, did_you_mean
from pressroom.registry import _tables as tables
from pressroom.registry.base import AnnotationError, Figure, FileEntry, Version

_MOST_TAG = 250
_MOST_FIGURE = 100
_MOST_UNIT = 40
_MOST_RUN = 200
_MOST_TEXT = 100_000
_NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def read_versions(connection: sa.Connection, name: str | None = None) -> list[Version]:
    """Every version, or those of one name, in the order of names and numbers."""

    def of(table: sa.Table, *order: sa.ColumnElement[Any]) -> sa.CursorResult[Any]:
        query = sa.select(table).order_by(table.c.name, table.c.number, *order)
        return connection.execute(query if name is None else query.where(table.c.name == name))

    files: dict[tuple[str, int], list[FileEntry]] = {}
    for row in of(tables.files, tables.files.c.path):
        files.setdefault((row.name, row.number), []).append(FileEntry(path=row.path, blob=row.blob, size=row.size))
    figures: dict[tuple[str, int], list[Figure]] = {}
    for row in of(tables.figures, tables.figures.c.place):
        figures.setdefault((row.name, row.number), []).append(
            Figure(name=row.figure, value=row.value, unit=row.unit, how=row.how, where=row.measured_on, at=row.at)
        )
    tags: dict[tuple[str, int], dict[str, str]] = {}
    for row in of(tables.tags, tables.tags.c.tag):
        tags.setdefault((row.name, row.number), {})[row.tag] = row.value
    aliases: dict[tuple[str, int], list[str]] = {}
    for row in of(tables.aliases, tables.aliases.c.alias):
        aliases.setdefault((row.name, row.number), []).append(row.alias)
    notes = {(row.name, row.number): row for row in of(tables.notes)}
    found = []
    for row in of(tables.versions):
        key = (row.name, row.number)
        said = notes.get(key)
        found.append(
            Version(
                name=row.name,
                number=row.number,
                digest=row.digest,
                kind=row.kind,
                parent=row.parent,
                source=row.source,
                created=row.created,
                metadata=row.metadata,
                files=tuple(files.get(key, ())),
                sheet=tuple(figures.get(key, ())),
                tags=tags.get(key, {}),
                description=said.description if said else "",
                run=said.run if said else "",
                aliases=tuple(sorted(aliases.get(key, ()))),
            )
        )
    return found


def insert_version(connection: sa.Connection, version: Version) -> int:
    """Add the version and its files; returns its number.

    Its own number is taken where it is above every number its name had (0: the next one). Equal files under that name
    are the version they were before. Sheet, tags and aliases are not looked at.
    """
    name = version.name
    if connection.dialect.name == "postgresql":
        # A database may be shared by workspaces whose locks know nothing of each other.
        connection.execute(sa.text("LOCK TABLE names IN SHARE ROW EXCLUSIVE MODE"))
    same = (tables.versions.c.name == name) & (tables.versions.c.digest == version.digest)
    known = connection.scalar(sa.select(tables.versions.c.number).where(same))
    if known is not None:
        return int(known)
    last = connection.scalar(sa.select(tables.names.c.last_number).where(tables.names.c.name == name))
    number = version.number if version.number > (last or 0) else (last or 0) + 1
    if last is None:
        connection.execute(tables.names.insert().values(name=name, last_number=number))
    else:
        connection.execute(tables.names.update().where(tables.names.c.name == name).values(last_number=number))
    connection.execute(
        tables.versions.insert().values(
            name=name,
            number=number,
            digest=version.digest,
            kind=version.kind,
            parent=version.parent,
            source=version.source,
            created=version.created or time.time(),
            metadata=storable(version.metadata),
        )
    )
    for entry in version.files:
        connection.execute(
            tables.files.insert().values(name=name, number=number, path=entry.path, blob=entry.blob, size=entry.size)
        )
    return number


def remove_version(connection: sa.Connection, version: Version) -> None:
    for table in tables.OF_A_VERSION:
        connection.execute(table.delete().where(_of(table, version.name, version.number)))


def storable(metadata: Any) -> Any:
    """Metadata as every database and JSON can keep it: a header may hold NaN and infinity, which become text."""
    if isinstance(metadata, dict):
        return {str(key): storable(value) for key, value in metadata.items()}
    if isinstance(metadata, list | tuple):
        return [storable(value) for value in metadata]
    return str(metadata) if isinstance(metadata, float) and not math.isfinite(metadata) else metadata


def checked_figures(figures: Iterable[Figure]) -> list[Figure]:
    """Raises ValueError where a value is no number (NaN, infinity: JSON and databases have none of these), and where a
    name or a unit is longer than the table takes.
    """
    listed = list(figures)
    for figure in listed:
        if not figure.name.isprintable() or not 0 < len(figure.name) <= _MOST_FIGURE or len(figure.unit) > _MOST_UNIT:
            raise ValueError(
                f"a figure has a printable name of at most {_MOST_FIGURE} letters and a unit of at most {_MOST_UNIT}; "
                f"got {figure.name[:120]!r}, {figure.unit[:60]!r}"
            )
        if isinstance(figure.value, float) and not math.isfinite(figure.value):
            raise ValueError(f"the figure {figure.name!r} is {figure.value}: say what was measured, or leave it out")
    return listed


def set_figures(connection: sa.Connection, name: str, number: int, figures: Iterable[Figure]) -> None:
    """Put figures on the sheet, in place of those of the same name, else behind the others."""
    of_version = _of(tables.figures, name, number)
    _hold(connection, name, number)
    for figure in figures:
        same = of_version & (tables.figures.c.figure == figure.name)
        values = {
            "value": figure.value,
            "unit": figure.unit,
            "how": figure.how,
            "measured_on": figure.where,
            "at": figure.at or time.time(),
        }
        if connection.execute(tables.figures.update().where(same).values(values)).rowcount:
            continue
        place = connection.scalar(sa.select(sa.func.count()).select_from(tables.figures).where(of_version))
        connection.execute(
            tables.figures.insert().values(name=name, number=number, figure=figure.name, place=place, **values)
        )


def checked_words(tags: Mapping[str, str | None], description: str | None, run: str | None) -> None:
    """Raises AnnotationError where a tag, a description or a run cannot be kept as it was written."""
    for tag, value in tags.items():
        if not tag.strip() or tag != tag.strip() or "=" in tag or not tag.isprintable() or len(tag) > _MOST_TAG:
            raise AnnotationError(
                f"{tag!r} cannot name a tag",
                hint=f"1 to {_MOST_TAG} printable characters without '=' and without blanks around them.",
                asked=tag,
            )
        checked_text(value or "", f"the value of the tag {tag!r}")
    checked_text(description or "", "the description")
    if run and (not run.isprintable() or len(run) > _MOST_RUN):
        raise AnnotationError(
            f"{run[:80]!r} cannot be the id of a run", hint=f"At most {_MOST_RUN} printable characters.", asked=run
        )


def checked_text(text: str, what: str) -> None:
    """Raises AnnotationError where `what`, a text, cannot be kept as it was written."""
    # PostgreSQL keeps no NUL, nothing keeps half of a surrogate pair, and a terminal obeys control characters.
    if len(text) > _MOST_TEXT or _NO_TEXT.search(text):
        raise AnnotationError(
            f"{what} cannot be kept",
            hint=f"At most {_MOST_TEXT:,} characters of text, without control characters but line feed and tab.",
            length=len(text),
        )


def set_words(
    connection: sa.Connection,
    name: str,
    number: int,
    tags: Mapping[str, str | None],
    description: str | None,
    run: str | None,
) -> None:
    """Set tags (None takes one away), and the description and the run where they are not None."""
    _hold(connection, name, number)
    for tag, value in tags.items():
        same = _of(tables.tags, name, number) & (tables.tags.c.tag == tag)
        if value is None:
            connection.execute(tables.tags.delete().where(same))
        elif not connection.execute(tables.tags.update().where(same).values(value=value)).rowcount:
            connection.execute(tables.tags.insert().values(name=name, number=number, tag=tag, value=value))
    said = {key: value for key, value in (("description", description), ("run", run)) if value is not None}
    if (
        said
        and not connection.execute(tables.notes.update().where(_of(tables.notes, name, number)).values(**said)).rowcount
    ):
        connection.execute(
            tables.notes.insert().values(name=name, number=number, **{"description": "", "run": "", **said})
        )


def _hold(connection: sa.Connection, name: str, number: int) -> None:
    """Keep other writers of this version waiting, where they do not anyway (SQLite leaves the clause out)."""
    held = sa.select(tables.versions.c.number).where(_of(tables.versions, name, number))
    connection.execute(held.with_for_update(key_share=True))


def _of(table: sa.Table, name: str, number: int) -> sa.ColumnElement[bool]:
    return (table.c.name == name) & (table.c.number == number)


def not_found(connection: sa.Connection, ref: Ref) -> NotFoundError:
    """The error for a reference that means nothing, with what is there."""
    names = [*connection.scalars(sa.select(tables.versions.c.name).distinct())]
    if ref.name not in names:
        hint = did_you_mean(ref.name, names, otherwise="`press list` shows what is registered.")
        return NotFoundError(f"there is no model called {ref.name!r}", hint=hint, asked=str(ref), known=names)
    versions = read_versions(connection, ref.name)
    numbers = ", ".join(str(version.number) for version in versions)
    if ref.version is None or ref.number is not None:
        return NotFoundError(f"{ref} does not exist", hint=f"{ref.name} has {numbers}.", asked=str(ref))
    aliases = {alias: version.number for version in versions for alias in version.aliases}
    pointing = ", ".join(f"{alias} → {number}" for alias, number in sorted(aliases.items()))
    said = f"Its aliases are {pointing}" if aliases else "No aliases are set"
    return NotFoundError(
        f"{ref.name} has no alias {ref.version!r}",
        hint=f"{said}; its versions are {numbers}.",
        asked=str(ref),
        known=sorted(aliases),
    )
