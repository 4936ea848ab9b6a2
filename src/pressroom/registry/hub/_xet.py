"""Large files on their way in, as clients with hf_xet send them: chunks first, then what files are made of them.

Such clients ask nobody whether they may use Xet, so a hub that takes pushes has to speak it. Each key has a session for
each model it pushes to, with an address of its own: a client remembers by address which chunks it has sent, and counts
on them. Chunks lie in the spool until a shard says which files they make; the files are put together, held against
their SHA-256, and wait like any other file for the commit. What stays of the chunks is where in those files they are.
"""

from __future__ import annotations

import bisect
import hashlib
import hmac
import os
import secrets
import shutil
import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import orjson

from pressroom.kernel import DigestMismatchError, HubSettings
from pressroom.registry.hub._access import Who
from pressroom.registry.hub._bodies import Gathered
from pressroom.registry.hub._refusals import bad_request, too_large
from pressroom.registry.hub._spool import Spool
from pressroom.registry.hub._uploads import SHA256
from pressroom.registry.hub._xorbs import MOST_SHARD, MOST_XORB, ShardFile, Term, Xorb, read_chunk, shard_files
from pressroom.registry.hub.base import Answer, HubError, HubRequest, Sink

_MOST_SESSIONS = 256
_IDLE_S = 24 * 3600.0
_MOST_TELEMETRY = 1 << 20
_JSON = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class _Placed:
    """Chunks from `start` to `end` of a xorb are in the file with this SHA-256, from `offset` on."""

    start: int
    end: int
    sha256: str
    offset: int


@dataclass(slots=True)
class _Chunks:
    """What is known of a xorb. `path` is None once every chunk of it is in some file."""

    xorb: Xorb
    path: Path | None
    placed: list[_Placed] = field(default_factory=list)
    left: int = 0


@dataclass(slots=True)
class _Session:
    name: str
    who: Who
    token: str
    folder: Path
    used: float
    xorbs: dict[str, _Chunks] = field(default_factory=dict)
    # Held while files are put together, which may take minutes; the other one for a moment.
    building: threading.Lock = field(default_factory=threading.Lock)
    adding: threading.Lock = field(default_factory=threading.Lock)


class Xet:
    """The sessions of one hub. Thread-safe. `opened` gives bytes of the store by their SHA-256, with how many they are,
    where whoever asks may read them: what a shard says of a file that is here is believed, and must open nothing."""

    def __init__(
        self, spool: Spool, settings: HubSettings, opened: Callable[[Who, str], tuple[BinaryIO, int] | None]
    ) -> None:
        self._spool = spool
        self._settings = settings
        self._opened = opened
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    def token(self, name: str, who: Who, origin: str) -> Answer:
        """Where this key sends chunks of this model to, and with which token."""
        gone: list[_Session] = []
        with self._lock:
            now = time.monotonic()
            idle = [key for key, each in self._sessions.items() if now - each.used > _IDLE_S]
            gone += [self._sessions.pop(key) for key in idle]
            whose = (name, who.name)
            found = next((key for key, each in self._sessions.items() if (each.name, each.who.name) == whose), None)
            if found is None:
                while len(self._sessions) >= _MOST_SESSIONS:
                    gone.append(self._sessions.popitem(last=False)[1])
                found = secrets.token_hex(16)
                token = secrets.token_urlsafe(32)
                self._sessions[found] = _Session(name, who, token, self._spool.folder("xet"), now)
            session = self._sessions[found]
            session.who = who  # its rights may have changed
            session.used = now
            self._sessions.move_to_end(found)
        for old in gone:
            self._forget(old)
        url, until = f"{origin}/api/xet/{found}", int(time.time() + _IDLE_S)
        headers = {
            **_JSON,
            "cache-control": "no-store",
            "x-xet-cas-url": url,
            "x-xet-access-token": session.token,
            "x-xet-token-expiration": str(until),
        }
        body = orjson.dumps({"casUrl": url, "accessToken": session.token, "exp": until})
        return Answer(headers=headers, body=body)

    def call(self, request: HubRequest, segments: tuple[str, ...]) -> Answer | Sink:
        """What a client asks below the address of its session.

        Raises:
            HubError: 401, the token is not that of the session; 404, there is nothing.
        """
        key = segments[0] if segments else ""
        with self._lock:
            session = self._sessions.get(key)
            if session is not None:
                session.used = time.monotonic()
                self._sessions.move_to_end(key)
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if session is None or not hmac.compare_digest(session.token.encode(), given.encode()):
            raise HubError(401, "there is no such session any more", hint="Push again.")
        match (request.method, *segments[1:]):
            case ("POST", "v1", "xorbs", "default", xorb) if SHA256.fullmatch(xorb):
                return _XorbSink(self._spool, session, xorb)
            case ("POST", "v1", "shards"):
                return _ShardSink(lambda body: self._shard(key, session, body))
            case ("POST", "v1", "telemetry"):
                return Gathered(lambda _: Answer(headers=_JSON, body=b"{}"), most=_MOST_TELEMETRY)
        raise HubError(404, "this is not known here")  # clients take it for "no such chunk", or use an older way

    def close(self) -> None:
        with self._lock:
            sessions, self._sessions = list(self._sessions.values()), OrderedDict()
        for session in sessions:
            self._forget(session)

    def _shard(self, key: str, session: _Session, body: bytes) -> Answer:
        files = list(shard_files(body))
        with session.building:  # one after another: they may be made of each other's chunks
            for file in files:
                self._file(key, session, file)
        return Answer(headers=_JSON, body=b'{"result":1}')

    def _file(self, key: str, session: _Session, file: ShardFile) -> None:
        most = self._settings.max_file_bytes
        if file.size > most:
            raise too_large(f"the file has {file.size:,} bytes, and this hub takes {most:,}", "hub.max_file_bytes")
        for term in file.terms:
            chunks = session.xorbs.get(term.xorb)
            if chunks is None:
                self._end(key)
                raise bad_request("the shard names chunks that were not sent here", "Push again.")
            lengths = chunks.xorb.lengths[term.start : term.end]
            if term.end > len(chunks.xorb.lengths) or sum(lengths) != term.length:
                raise bad_request("a term of the shard is not what the chunks say")
        if not self._here(session.who, file):
            self._spool.room_for(file.size)
            self._put_together(key, session, file)
        offset = 0
        for term in file.terms:
            self._place(session.xorbs[term.xorb], _Placed(term.start, term.end, file.sha256, offset))
            offset += term.length

    def _here(self, who: Who, file: ShardFile) -> bool:
        path = self._spool.get(file.sha256)
        if path is not None:
            return path.stat().st_size == file.size
        opened = self._opened(who, file.sha256)
        if opened is None:
            return False
        opened[0].close()
        return opened[1] == file.size

    def _put_together(self, key: str, session: _Session, file: ShardFile) -> None:
        part = self._spool.part()
        hasher = hashlib.sha256()
        try:
            with self._spool.writing(), part.open("wb") as out:
                for term in file.terms:
                    for data in self._bytes(key, session, term):
                        hasher.update(data)
                        out.write(data)
            if hasher.hexdigest() != file.sha256:
                raise DigestMismatchError(
                    f"the chunks make a file with SHA-256 {hasher.hexdigest()}, and {file.sha256} was declared",
                    hint="The file changed while it was sent: push again.",
                )
            self._spool.keep(part, file.sha256)
        finally:
            part.unlink(missing_ok=True)

    def _bytes(self, key: str, session: _Session, term: Term) -> Iterator[bytes]:
        chunks = session.xorbs[term.xorb]
        if chunks.path is not None:
            with chunks.path.open("rb") as file:
                for start in chunks.xorb.starts[term.start : term.end]:
                    yield read_chunk(file.fileno(), start)
            return
        with ExitStack() as held:
            at = term.start
            while at < term.end:
                place = bisect.bisect_right(chunks.placed, at, key=lambda each: each.start) - 1
                placed = chunks.placed[place]
                opened = self._open(session.who, placed.sha256)
                if opened is None:
                    self._end(key)
                    raise bad_request("the shard names chunks of a file that is not here any more", "Push again.")
                held.callback(opened.close)
                opened.seek(placed.offset + sum(chunks.xorb.lengths[placed.start : at]))
                end = min(placed.end, term.end)
                for length in chunks.xorb.lengths[at:end]:
                    yield opened.read(length)
                at = end

    def _open(self, who: Who, sha256: str) -> BinaryIO | None:
        path = self._spool.get(sha256)
        if path is not None:
            return path.open("rb")
        opened = self._opened(who, sha256)
        return opened[0] if opened is not None else None

    def _place(self, chunks: _Chunks, placed: _Placed) -> None:
        """Note where chunks are now; once all are somewhere, the xorb itself is not needed any more."""
        if chunks.path is None:
            return
        # Only what is not placed yet, so that the places do not overlap and stay in order.
        at = placed.start
        for known in [*chunks.placed, None]:
            until = placed.end if known is None else min(known.start, placed.end)
            if at < until:
                offset = placed.offset + sum(chunks.xorb.lengths[placed.start : at])
                bisect.insort(chunks.placed, _Placed(at, until, placed.sha256, offset), key=lambda each: each.start)
                chunks.left -= until - at
            if known is not None:
                at = max(at, known.end)
        if chunks.left == 0:
            path, chunks.path = chunks.path, None
            chunks.xorb.starts = array("Q")
            path.unlink(missing_ok=True)

    def _end(self, key: str) -> None:
        """Let the next token be for a new session: this one's client counts on what is not here."""
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            self._forget(session)

    def _forget(self, session: _Session) -> None:
        shutil.rmtree(session.folder, ignore_errors=True)  # something may still be written there: it fails, or goes


class _ShardSink(Gathered):
    slow = True

    def __init__(self, answer: Callable[[bytes], Answer]) -> None:
        super().__init__(answer, most=MOST_SHARD)


class _XorbSink(Sink):
    """Takes a xorb into a file."""

    def __init__(self, spool: Spool, session: _Session, name: str) -> None:
        spool.room_for(MOST_XORB)
        self._spool = spool
        self._session = session
        self._name = name
        self._size = 0
        self._path = session.folder / f"{name}.{secrets.token_hex(4)}"
        with spool.writing():
            self._file = self._path.open("wb", buffering=0)

    def write(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > MOST_XORB:
            raise too_large(f"the xorb is over {MOST_XORB} bytes")
        with self._spool.writing():
            view = memoryview(data)
            while view:
                view = view[os.write(self._file.fileno(), view) :]

    def finish(self) -> Answer:
        self._file.close()
        xorb = Xorb.read(self._path)
        with self._session.adding:
            new = self._name not in self._session.xorbs
            if new:
                self._session.xorbs[self._name] = _Chunks(xorb, self._path, left=len(xorb.lengths))
        if not new:
            self._path.unlink(missing_ok=True)
        return Answer(headers=_JSON, body=b'{"was_inserted":true}' if new else b'{"was_inserted":false}')

    def abort(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)
