"""A commit, as clients send it: JSON objects, one a line, the first of them its message. And what came before it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pressroom.registry.base import FileEntry, Version
from pressroom.registry.hub._bodies import Lines, parsed_object
from pressroom.registry.hub._files import MOST_REGULAR
from pressroom.registry.hub._publishing import Added, Deleted, Publisher, Push, check_path, missing
from pressroom.registry.hub._refusals import bad_request, too_large
from pressroom.registry.hub._spool import Spool
from pressroom.registry.hub._uploads import SHA256
from pressroom.registry.hub.base import Answer, Sink

# A regular file in base64, with its path around it.
_MOST_LINE = MOST_REGULAR * 4 // 3 + (64 << 10)
_MOST_STEPS = 100_000
_ENCODINGS = ("utf-8", "base64")
_MOST_MESSAGE = 10_000
_MOST_TOLD = 256
_TOLD_S = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class _Told:
    at: float
    paths: dict[str, FileEntry | None]


class Tellings:
    """What clients were told of files before they pushed: a client leaves out of its commit what it has unchanged.

    Remembered by name and key, and bounded. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: OrderedDict[tuple[str, str, int], _Told] = OrderedDict()
        self._count = 0

    def tell(self, name: str, who: str, paths: dict[str, FileEntry | None]) -> None:
        """Somebody asked about these paths, and was told what is there."""
        with self._lock:
            self._count += 1
            self._told[name, who, self._count] = _Told(time.monotonic(), paths)
            while len(self._told) > _MOST_TOLD:
                self._told.popitem(last=False)

    def unchanged(self, name: str, who: str, pushed: Iterable[str]) -> dict[str, FileEntry]:
        """What this client was told together with the paths it pushes now, and does not push."""
        left = set(pushed)
        known = set(left)
        found: dict[str, FileEntry] = {}
        now = time.monotonic()
        with self._lock:
            for key, told in reversed(self._told.items()):
                if key[:2] != (name, who) or now - told.at > _TOLD_S or not left & told.paths.keys():
                    continue
                left -= told.paths.keys()
                for path, entry in told.paths.items():
                    if path not in known and entry is not None:
                        found.setdefault(path, entry)
                if not left:
                    break
        return found


class CommitSink(Sink):
    """Takes a commit line by line. Small files come within it and wait in the spool; large ones came before.

    `held` finds bytes by their SHA-256 that are in the store already, `done` makes the answer.
    """

    slow = True

    def __init__(
        self,
        push: Push,
        *,
        spool: Spool,
        publisher: Publisher,
        tellings: Tellings,
        held: Callable[[str], FileEntry | None],
        done: Callable[[Push, Version | None], Answer],
    ) -> None:
        self._push = push
        self._spool = spool
        self._publisher = publisher
        self._tellings = tellings
        self._held = held
        self._done = done
        self._lines = Lines(_MOST_LINE)
        with spool.writing():
            self._folder = spool.folder("commit")
        self._header = False

    def write(self, data: bytes) -> None:
        for line in self._lines.feed(data):
            self._line(line)

    def finish(self) -> Answer:
        self._line(self._lines.last())
        if not self._header:
            raise bad_request("the commit has no header line", '{"key": "header", "value": {"summary": "…"}}')
        push = self._push
        if push.parent_commit is None:
            pushed = {step.path for step in push.steps}
            gone = [step.path.rstrip("/") for step in push.steps if isinstance(step, Deleted)]
            told = self._tellings.unchanged(push.name, push.who, pushed) if pushed else {}
            push.unchanged = {
                path: entry
                for path, entry in told.items()
                if not any(path == each or path.startswith(f"{each}/") for each in gone)
            }
        try:
            return self._done(push, self._publisher.publish(push))
        finally:
            self.abort()

    def abort(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _line(self, line: bytes) -> None:
        if not line.strip():
            return
        item = parsed_object(line, "a line of the commit")
        key, value = item.get("key"), item.get("value")
        if not isinstance(value, dict):
            raise bad_request("a line of the commit has no value", '{"key": "…", "value": {…}}')
        if not self._header and key != "header":
            raise bad_request("the first line of a commit is its header")
        if len(self._push.steps) >= _MOST_STEPS:
            raise too_large(f"a commit has at most {_MOST_STEPS:,} files", "Push the folder in several commits.")
        match key:
            case "header":
                self._take_header(value)
            case "file":
                self._take_file(value)
            case "lfsFile":
                self._take_large(value)
            case "deletedFile" | "deletedFolder":
                path = _text(value, "path")
                self._push.steps.append(Deleted(path, folder=key == "deletedFolder"))
            case _:
                raise bad_request(
                    f"a commit has no {str(key)[:80]!r}", "There are header, file, lfsFile, deletedFile, deletedFolder."
                )

    def _take_header(self, value: dict[str, Any]) -> None:
        if self._header:
            raise bad_request("the commit has two headers")
        self._header = True
        push = self._push
        push.summary = _text(value, "summary", default="")[:_MOST_MESSAGE]
        push.description = _text(value, "description", default="")[:_MOST_MESSAGE]
        parent = value.get("parentCommit")
        if parent is not None:
            push.parent_commit = _text(value, "parentCommit")

    def _take_file(self, value: dict[str, Any]) -> None:
        path = _text(value, "path")
        check_path(path)
        content = _text(value, "content")
        encoding = value.get("encoding", "utf-8")
        if encoding not in _ENCODINGS:
            raise bad_request(
                f"the content of {path!r} has the encoding {str(encoding)[:40]!r}",
                f"There are {' and '.join(_ENCODINGS)}.",
            )
        try:
            raw = base64.b64decode(content, validate=True) if encoding == "base64" else content.encode()
        except (binascii.Error, ValueError) as error:
            raise bad_request(f"the content of {path!r} is not {str(encoding)[:40]}") from error
        if len(raw) > MOST_REGULAR:
            raise too_large(f"{path!r} is over {MOST_REGULAR:,} bytes and did not come as a large file")
        self._spool.room_for(len(raw))
        local = self._folder / str(len(self._push.steps))
        with self._spool.writing():
            local.write_bytes(raw)
        self._push.steps.append(Added(path, hashlib.sha256(raw).hexdigest(), len(raw), local=local))

    def _take_large(self, value: dict[str, Any]) -> None:
        path, sha256 = _text(value, "path"), _text(value, "oid")
        check_path(path)
        if value.get("algo", "sha256") != "sha256" or not SHA256.fullmatch(sha256):
            raise bad_request(f"{path!r} is not named by a SHA-256")
        local = self._spool.get(sha256)
        if local is not None:
            # A name of our own: another push of the same file may end first, and drop it.
            mine = self._folder / str(len(self._push.steps))
            try:
                mine.hardlink_to(local)
            except FileNotFoundError:
                local = None
            except OSError:  # a file system without hard links
                mine = local
            if local is not None:
                self._push.steps.append(Added(path, sha256, mine.stat().st_size, local=mine, spooled=True))
        if local is None:
            held = self._held(sha256)
            if held is None:
                raise missing(sha256)
            self._push.steps.append(Added(path, sha256, held.size, blob=held.blob))
        size = value.get("size")
        if size is not None and size != self._push.steps[-1].size:  # type: ignore[union-attr]
            raise bad_request(f"{path!r} does not have the size that is said")


def _text(value: dict[str, Any], key: str, *, default: str | None = None) -> str:
    found = value.get(key, default)
    if not isinstance(found, str):
        raise bad_request(f"a line of the commit has no {key!r}")
    return found
