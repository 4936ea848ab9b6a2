"""From what a commit says to a version: every file kept and judged, then one row; or nothing at all."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pressroom.kernel import MalformedWeightsError, NotFoundError, PressroomError, UnsafeWeightsError, Workspace
from pressroom.registry._judging import described, judge_kept
from pressroom.registry.base import FileEntry, Version, clashing, is_file_path
from pressroom.registry.hub._card import MOST_CARD, base_models, front_matter, kind_of
from pressroom.registry.hub._refusals import bad_request
from pressroom.registry.hub._repositories import Repositories, Repository, name_of
from pressroom.registry.hub._spool import Spool
from pressroom.registry.hub.base import HubError
from pressroom.registry.registry import Registry
from pressroom.store import inspect, is_pickle_name, sniff

# Somebody may collect unused bytes between our putting and registering them; the files are still here then.
_ATTEMPTS = 3
_INCOMPLETE = "hub.incomplete"
_BASE = "hub.base_model"
_MOST_TAG = 1_000
_MOST_DESCRIPTION = 20_000


@dataclass(frozen=True, slots=True)
class Added:
    """A file that a commit puts at `path`: its bytes lie at `local`, or in the store as `blob`."""

    path: str
    sha256: str
    size: int
    local: Path | None = None
    blob: str | None = None
    spooled: bool = False


@dataclass(frozen=True, slots=True)
class Deleted:
    """A file, or everything below a folder, that a commit takes away."""

    path: str
    folder: bool


@dataclass(slots=True)
class Push:
    """A commit as it was sent: `steps` in order. `unchanged` are files that the client was told are the same, by path,
    with what they were then: it left them out because of that."""

    name: str
    who: str
    summary: str = ""
    description: str = ""
    parent_commit: str | None = None
    steps: list[Added | Deleted] = field(default_factory=list)
    unchanged: dict[str, FileEntry] = field(default_factory=dict)


def check_path(path: str) -> None:
    """Raise HubError (400) where a pushed file cannot be called so."""
    if not is_file_path(path):
        raise bad_request(
            f"{path[:200]!r} cannot be the path of a file",
            "Relative, with '/', without '..', '\\' and control characters, at most 500 characters.",
        )
    if is_pickle_name(path):
        raise bad_request(
            f"{path!r} is a Python pickle by its name: loading one runs whatever code it contains, so it is not taken",
            "Save weights as safetensors (safe_serialization=True), and leave this file out (ignore_patterns=...).",
        )


class Publisher:
    """Makes versions. Thread-safe; pushes of one name take turns where it matters."""

    def __init__(self, workspace: Workspace, registry: Registry, repositories: Repositories, spool: Spool) -> None:
        self._workspace = workspace
        self._registry = registry
        self._repositories = repositories
        self._spool = spool

    def publish(self, push: Push) -> Version | None:
        """Register what the push makes of its repository; None where there is nothing, before and after.

        Raises:
            HubError: 412, `main` is not the parent that the client named; 404, it deletes what is not there; 400, it
                leaves no file, or files that no file system can hold together.
            UnsafeWeightsError, MalformedWeightsError: a file is a pickle, or damaged.
            StoreFullError, StoreError: it cannot be kept.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            put: dict[str, FileEntry] = {}
            try:
                self._put(push, put)
                version = self._register(push, put)
                break
            except PressroomError:
                lost = any(self._registry.store.size(entry.blob) is None for entry in put.values())
                if attempt < _ATTEMPTS and lost:
                    continue
                with suppress(PressroomError):  # why nothing could be kept is the error to hear of
                    self._registry.collect(entry.blob for entry in put.values())
                raise
        for step in push.steps:
            if isinstance(step, Added) and step.spooled:
                self._spool.drop(step.sha256)
        return version

    def _put(self, push: Push, put: dict[str, FileEntry]) -> None:
        """Keep the bytes of every file the push adds."""
        repository = self._repositories.find(push.name)
        near = [entry.blob for entry in repository.head.files] if repository.head is not None else []
        for step in push.steps:
            if not isinstance(step, Added):
                continue
            if step.blob is not None:
                put[step.path] = FileEntry(path=step.path, blob=step.blob, size=step.size)
                continue
            assert step.local is not None
            _judge(step.local, step.path)
            blob = self._registry.store.put_file(step.local, near=near)
            self._registry.remember_sha256(blob.digest, step.sha256)
            put[step.path] = FileEntry(path=step.path, blob=blob.digest, size=blob.size)

    def _register(self, push: Push, put: Mapping[str, FileEntry]) -> Version | None:
        lock = f"hub-{hashlib.sha256(push.name.encode()).hexdigest()[:16]}"
        with self._workspace.lock(lock, purpose=f"push {push.name}", wait_s=None):
            repository = self._repositories.find(push.name)
            if push.parent_commit is not None and not repository.commit.startswith(push.parent_commit.lower()):
                raise HubError(
                    412,
                    f"main of {push.name} is at {repository.commit}, and not at {push.parent_commit}",
                    hint="Somebody pushed meanwhile: look at what is there now, and push again.",
                )
            before = {entry.path: entry for entry in repository.head.files} if repository.head is not None else {}
            after = _applied(push, before, put)
            if after == before:
                return repository.head
            _check_together(after)
            version = self._registered(push, repository, after)
            if any(version.number == known.number for known in repository.versions):
                self._repositories.set_head(push.name, version)
            return version

    def _registered(self, push: Push, repository: Repository, after: Mapping[str, FileEntry]) -> Version:
        entries = [after[path] for path in sorted(after)]
        tags: dict[str, str] = {}
        metadata: dict[str, Any] = {}
        workdir = self._spool.folder("judge")
        try:
            blobs = {entry.path: entry.blob for entry in entries}
            info = judge_kept(self._registry.store, blobs, workdir, as_data=False)
            if info is not None:
                metadata = described(info, sum(entry.size for entry in entries))
        except MalformedWeightsError as error:
            # Each file is sound by itself (looked at when it came). A push may come in several commits, and a
            # repository may hold a tokenizer only: it is kept as it is, and says that it is no model yet.
            tags[_INCOMPLETE] = _plain(error.message)[:_MOST_TAG]
        finally:
            shutil.rmtree(workdir, ignore_errors=True)
        card = self._card(after.get("README.md"))
        parent = self._parent(card, tags)
        kind = kind_of(card) or ("adapter" if "adapter_config.json" in after else None)
        if parent is not None:
            parent_digest, kind = parent.digest, kind or "fine-tune"
        elif repository.head is not None:
            parent_digest, kind = repository.head.parent or "", kind or repository.head.kind
        else:
            parent_digest, kind = "", kind or "base"
        said = "\n\n".join(text for text in (push.summary, push.description) if text.strip())
        return self._registry.register(
            push.name,
            entries,
            kind=kind,
            parent=parent_digest or None,
            source=f"push:{push.who}",
            metadata=metadata,
            tags=tags,
            description=_plain(said)[:_MOST_DESCRIPTION],
        )

    def _card(self, readme: FileEntry | None) -> dict[str, Any]:
        if readme is None:
            return {}
        with self._registry.store.open(readme.blob) as file:
            try:
                return front_matter(file.read(MOST_CARD))
            except ValueError:  # a card that cannot be read says nothing
                return {}

    def _parent(self, card: Mapping[str, Any], tags: dict[str, str]) -> Version | None:
        """The version that the card's base model is: registered here by that name, or pulled from there."""
        for name in base_models(dict(card)):
            with suppress(PressroomError):
                return self._registry.get(name_of(name))
            pulled = [v for v in self._registry.list() if v.source.startswith(f"hf:{name}@")]
            if pulled:
                return pulled[-1]
            tags.setdefault(_BASE, _plain(name))
        return None


def _judge(path: Path, name: str) -> None:
    """Refuse a pickle in whatever dress, and weights that are damaged."""
    kind = sniff(path, name)
    if kind == "pickle":
        inspect(path, name=name)  # says why, and the safe way
        raise UnsafeWeightsError(f"{name!r} is a Python pickle")
    if kind in ("safetensors", "gguf"):
        inspect(path, name=name)


def _applied(push: Push, before: Mapping[str, FileEntry], put: Mapping[str, FileEntry]) -> dict[str, FileEntry]:
    """The files after the push. What its client left out because it was unchanged is as that client knew it, also where
    somebody else pushed meanwhile: two pushes are never mixed."""
    after = {**before, **push.unchanged}
    for step in push.steps:
        if isinstance(step, Added):
            after[step.path] = put[step.path]
            continue
        plain = step.path.rstrip("/")
        gone = [path for path in after if (path.startswith(f"{plain}/") if step.folder else path == plain)]
        if not gone and not (step.folder and plain in ("", ".")):
            kind = "folder" if step.folder else "file"
            raise HubError(
                404,
                f"A {kind} with this name doesn't exist: {step.path[:200]!r}",
                header_code="EntryNotFound",
            )
        for path in gone or list(after):
            del after[path]
    if not after:
        raise bad_request(
            "the push leaves no file", "A version has at least one. Versions are removed with `press rm`."
        )
    return after


def _check_together(files: Mapping[str, FileEntry]) -> None:
    """Refuse what one file system can hold and another cannot."""
    if clash := clashing(files):
        raise bad_request(
            f"{clash[0]!r} and {clash[1]!r} are one name where case does not count, or one is a file and a folder for "
            "the other",
            "Rename one.",
        )


def _plain(text: str) -> str:
    """The text without what a database or a terminal would stumble over."""
    return "".join(c for c in text if c in "\t\n" or (c.isprintable() and not "\ud800" <= c <= "\udfff"))


def missing(sha256: str) -> NotFoundError:
    """What to raise for a file that a commit names and nobody sent."""
    return NotFoundError(
        f"the file with SHA-256 {sha256} was not uploaded",
        hint="Push again: what is missing is then asked for.",
        asked=sha256,
    )
