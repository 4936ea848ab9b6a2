"""What is here and whole: every byte against its digest, every row against the others. And what nothing refers to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import sqlalchemy as sa

from pressroom.kernel import DigestMismatchError, NotFoundError, Progress, Ref, StoreError, Workspace
from pressroom.registry import _tables as tables
from pressroom.registry._mlflow_tables import artifacts
from pressroom.registry.base import Version, manifest_digest
from pressroom.registry.registry import Registry

_SHOWN = 3
_AGAIN = "Pull or import these versions again, which mends them; `press rm REF` lets go of one."


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """`kind` is `damaged` (bytes are not what their digest says), `missing` (a row without bytes) or `record` (rows
    contradict each other). `refs` are the versions it concerns; none where nothing refers to the bytes.

    Of bytes, `places` are the versions and the paths of the files in them, `tensors` the names of those that are
    damaged (none where it is not known, or no tensor), and `details` what the store said, in full.
    """

    kind: str
    message: str
    hint: str = ""
    blob: str = ""
    refs: tuple[str, ...] = ()
    places: tuple[tuple[str, str], ...] = ()
    tensors: tuple[str, ...] = ()
    details: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(kw_only=True, slots=True)
class Report:
    """What was looked at, and what is wrong. `loose` are bytes without a row: no fault, `collect` lets go of them."""

    versions: int = 0
    files: int = 0
    bytes: int = 0
    problems: list[Problem] = field(default_factory=list)
    loose_files: int = 0
    loose_bytes: int = 0

    @property
    def sound(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "sound": self.sound}


def verify(workspace: Workspace, ref: Ref | str | None = None) -> Report:
    """Read every byte of a version, or of everything held, and hold it against its digest; then the rows.

    Damage is reported, not raised.

    Raises:
        RefError, NotFoundError: `ref` means no version.
    """
    registry = Registry(workspace)
    versions = [registry.get(ref)] if ref is not None else list(registry.list())
    report = Report(versions=len(versions))
    users: dict[str, list[tuple[str, str]]] = {}
    sizes: dict[str, int] = {}
    for version in versions:
        for entry in version.files:
            users.setdefault(entry.blob, []).append((f"{version.name}:{version.number}", entry.path))
            sizes[entry.blob] = entry.size
    if ref is None:
        for path, blob, size in _artifacts(workspace):
            users.setdefault(blob, []).append(("an MLflow artifact", path))
            sizes.setdefault(blob, size)
    loose = registry.loose() if ref is None else []
    report.loose_files, report.loose_bytes = len(loose), sum(blob.size for blob in loose)
    sizes.update({blob.digest: blob.size for blob in loose})
    total, done = sum(sizes.values()), 0
    task = f"verifying {ref}" if ref is not None else "verifying everything"
    for blob, size in sizes.items():
        problem = _of_bytes(registry, blob, size, users.get(blob, ()))
        if problem is not None:
            report.problems.append(problem)
        else:
            report.files, report.bytes = report.files + 1, report.bytes + size
        done += size
        workspace.events.emit(Progress(task, done, total))
    report.problems.extend(_of_records(versions))
    if ref is None:
        report.problems.extend(_of_aliases(workspace, versions))
    return report


def _artifacts(workspace: Workspace) -> list[tuple[str, str, int]]:
    """Path, blob and size of each file that MLflow keeps here."""
    with workspace.database.reading() as connection:
        if not sa.inspect(connection).has_table(artifacts.name):
            return []
        query = sa.select(artifacts.c.path, artifacts.c.blob, artifacts.c.size).order_by(artifacts.c.path)
        return [(row.path, row.blob, row.size) for row in connection.execute(query)]


def _of_bytes(registry: Registry, blob: str, size: int, places: Iterable[tuple[str, str]]) -> Problem | None:
    problem = partial(_problem, blob, tuple(places))
    held = registry.store.size(blob)
    if held is None:
        return problem("missing", "not held")
    if held != size:
        return problem("damaged", f"{held:,} bytes, and must be {size:,}")
    try:
        registry.store.verify(blob)
    except NotFoundError as error:
        return problem("missing", "not held", details=error.message)
    except DigestMismatchError as error:
        tensors = tuple(str(name) for name in error.facts.get("tensors", ()))
        # What can still be read is mended by something else than reading it in again.
        hint = error.hint if error.facts.get("found") == blob else ""
        return problem("damaged", _words(tensors), details=error.message, hint=hint, tensors=tensors)
    except StoreError as error:
        return problem("damaged", error.message, details=error.message, hint=error.hint)
    return None


def _problem(
    blob: str,
    places: tuple[tuple[str, str], ...],
    kind: str,
    words: str,
    *,
    details: str = "",
    hint: str = "",
    tensors: tuple[str, ...] = (),
) -> Problem:
    refs = tuple(f"{ref} ({path})" for ref, path in places)
    shown = ", ".join(refs[:_SHOWN]) + (f" and {len(refs) - _SHOWN} more" if refs[_SHOWN:] else "")
    return Problem(
        kind=kind,
        message=f"{shown or f'{blob[:19]}…, which nothing refers to'}: {words}",
        hint=hint or (_AGAIN if refs else "`press gc` lets go of what nothing refers to."),
        blob=blob,
        refs=refs,
        places=places,
        tensors=tensors,
        details=details or words,
    )


def _words(tensors: Sequence[str]) -> str:
    """What is damaged, briefly."""
    if not tensors:
        return "the bytes are not what they were"
    more = f" and {len(tensors) - _SHOWN} more" if tensors[_SHOWN:] else ""
    return f"{len(tensors)} {'tensor' if len(tensors) == 1 else 'tensors'} damaged, {', '.join(tensors[:_SHOWN])}{more}"


def _of_records(versions: Sequence[Version]) -> Iterable[Problem]:
    for version in versions:
        name = f"{version.name}:{version.number}"
        if not version.files:
            yield Problem(kind="record", message=f"{name} has no files", hint=f"press rm {name}", refs=(name,))
        elif manifest_digest(version.files) != version.digest:
            yield Problem(
                kind="record",
                message=f"the files of {name} do not make its digest {version.digest[:19]}…: its rows were altered",
                hint="Restore the database, or remove the version and pull it again.",
                refs=(name,),
            )


def _of_aliases(workspace: Workspace, versions: Sequence[Version]) -> Iterable[Problem]:
    """An alias and the last of its history must agree, and no number may be above the last that was given."""
    pointing = {(version.name, alias): version.number for version in versions for alias in version.aliases}
    with workspace.database.reading() as connection:
        last: dict[tuple[str, str], int | None] = {}
        for row in connection.execute(sa.select(tables.moves).order_by(tables.moves.c.id)):
            if row.action == "promoted":
                last[row.name, row.alias] = row.to_number
            elif row.action == "demoted":
                last[row.name, row.alias] = None
        numbers = {row.name: row.last_number for row in connection.execute(sa.select(tables.names))}
    yield from _disagreeing(pointing, last)
    for version in versions:
        if version.number > numbers.get(version.name, 0):
            name = f"{version.name}:{version.number}"
            message = f"{name} is above the last number that was given for {version.name}: its rows were altered"
            yield Problem(kind="record", message=message, hint="Restore the database.", refs=(name,))


def _disagreeing(
    pointing: Mapping[tuple[str, str], int], last: Mapping[tuple[str, str], int | None]
) -> Iterable[Problem]:
    for name, alias in sorted({*pointing, *last}):
        now, said = pointing.get((name, alias)), last.get((name, alias))
        if now != said:
            yield Problem(
                kind="record",
                message=f"{name}:{alias} points to {now or 'nothing'}, and its history says {said or 'nothing'}",
                hint=f"Promote again what is right: press promote {name}:NUMBER {alias}",
                refs=(f"{name}:{alias}",),
            )
