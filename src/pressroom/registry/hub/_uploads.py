"""Large files on their way in, as Git LFS has it: a batch says what is wanted, each file comes in one PUT or several.

The PUTs of clients carry no key: the address they are given is the right to send this one file, and ends after a day.
A file is taken only as what was declared: so many bytes, with that SHA-256.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blake3

from pressroom.kernel import DigestMismatchError, HubSettings
from pressroom.registry.hub._bodies import parsed_object
from pressroom.registry.hub._refusals import bad_request, too_large
from pressroom.registry.hub._spool import Spool
from pressroom.registry.hub.base import Answer, HubError, Sink

SHA256 = re.compile(r"[0-9a-f]{64}")
LFS_JSON = {"content-type": "application/vnd.git-lfs+json"}

_MOST_OBJECTS = 1_000
_MOST_OPEN = 4_096
_OPEN_S = 24 * 3600.0
# A cut costs what was sent of one part.
_PART = 64 << 20
_MOST_PARTS = 1_000
_CHUNK = 4 << 20


@dataclass(slots=True)
class Upload:
    """A file that is being sent, or may be. `etags` are of the parts that came; `hasher` has seen `hashed` bytes from
    the beginning on, and nobody has written to these since.

    `turns` says who may write a part: the one who began last, so that what a cut request still had on its way never
    comes over what was sent again. `lock` guards all of this, and every write.
    """

    sha256: str
    size: int
    part: int  # bytes of every part but the last; 0: it comes in one
    path: Path
    until: float
    etags: dict[int, str] = field(default_factory=dict)
    hasher: Any = field(default_factory=hashlib.sha256)
    hashed: int = 0
    turns: dict[int, object] = field(default_factory=dict)
    closed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def parts(self) -> int:
        return -(-self.size // self.part) if self.part else 1


class Uploads:
    """The uploads that are open. Thread-safe."""

    def __init__(self, spool: Spool, settings: HubSettings) -> None:
        self._spool = spool
        self._settings = settings
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Upload] = OrderedDict()

    def batch(self, body: bytes, *, address: str, verify: str, held: Callable[[str], bool]) -> Answer:
        """Say of each object whether and where it is wanted. `address` is what the uploads' own addresses begin with,
        `held` says whether the bytes of a SHA-256 are here."""
        asked = parsed_object(body, "the batch")
        objects = asked.get("objects")
        if asked.get("operation") != "upload" or not isinstance(objects, list) or len(objects) > _MOST_OBJECTS:
            raise bad_request(
                "this is not a batch of uploads", f"operation: upload, and at most {_MOST_OBJECTS} objects."
            )
        if asked.get("hash_algo", "sha256") != "sha256":
            raise bad_request("files are named by their SHA-256 here", "hash_algo: sha256")
        transfers = asked.get("transfers") or ["basic"]
        multipart = isinstance(transfers, list) and "multipart" in transfers
        answers = [self._object(each, address, verify, held, multipart=multipart) for each in objects]
        cut = any("chunk_size" in a.get("actions", {}).get("upload", {}).get("header", {}) for a in answers)
        return _json({"transfer": "multipart" if cut else "basic", "objects": answers, "hash_algo": "sha256"})

    def receive(self, token: str, number: int) -> Sink:
        """Take a file (`number` 0) or one of its parts (from 1 on).

        Raises:
            HubError: 404, there is no such upload any more, or it has no such part.
        """
        upload = self._find(token)
        if not (1 <= number <= upload.parts if upload.part else number == 0):
            raise HubError(404, "this upload has no such part", hint="Push again.")
        return _Whole(self, token, upload) if number == 0 else _Part(self._spool, upload, number)

    def complete(self, token: str, body: bytes) -> Answer:
        """All parts of a file have come: hold it against what was declared."""
        upload = self._find(token)
        parts = parsed_object(body, "the completion").get("parts")
        said = (
            {p.get("partNumber"): p.get("etag") for p in parts if isinstance(p, dict)}
            if isinstance(parts, list)
            else {}
        )
        with upload.lock:
            came = upload.etags
            if not upload.part or set(came) != set(range(1, upload.parts + 1)) or said != came:
                raise bad_request("not every part of the file came as it is told", "Push again.")
            upload.closed = True  # what is hashed from here on is what is kept
        self.keep(token, upload, upload.path, _hashed(upload))
        return _json({"success": True})

    def keep(self, token: str, upload: Upload, path: Path, found: str) -> None:
        """End the upload with the file at `path`, whose SHA-256 is `found`. Raises DigestMismatchError."""
        with self._lock:
            self._open.pop(token, None)
        if found != upload.sha256:
            path.unlink(missing_ok=True)
            raise DigestMismatchError(
                f"the bytes have SHA-256 {found}, and {upload.sha256} was declared",
                hint="The file changed while it was sent, or was altered on its way: push again.",
            )
        self._spool.keep(path, found)

    def close(self) -> None:
        with self._lock:
            uploads, self._open = list(self._open.values()), OrderedDict()
        for upload in uploads:
            upload.path.unlink(missing_ok=True)

    def _object(
        self, asked: Any, address: str, verify: str, held: Callable[[str], bool], *, multipart: bool
    ) -> dict[str, Any]:
        oid, size = (asked.get("oid"), asked.get("size")) if isinstance(asked, dict) else (None, None)
        if not isinstance(oid, str) or not SHA256.fullmatch(oid) or type(size) is not int or size < 0:
            raise bad_request("an object of the batch has no SHA-256 as oid, or no size in bytes")
        answer: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
        if self._spool.get(oid) is not None or held(oid):
            return answer
        most = self._settings.max_file_bytes
        if size > most:
            message = f"the file has {size:,} bytes, and this hub takes {most:,} (setting hub.max_file_bytes)"
            return {**answer, "error": {"code": 413, "message": message}}
        self._spool.room_for(size)
        part = -(-max(_PART, -(-size // _MOST_PARTS)) // (1 << 20)) << 20 if multipart and size > _PART else 0
        token = self._add(Upload(oid, size, part, self._spool.part(), time.monotonic() + _OPEN_S))
        upload: dict[str, Any] = {"href": f"{address}/0?token={token}", "header": {}}
        if part:
            numbers = range(1, -(-size // part) + 1)
            upload["header"] = {str(n): f"{address}/{n}?token={token}" for n in numbers} | {"chunk_size": str(part)}
            upload["href"] = f"{address}/complete?token={token}"
        answer["actions"] = {"upload": upload, "verify": {"href": verify, "header": {}}}
        return answer

    def _add(self, upload: Upload) -> str:
        token = secrets.token_urlsafe(32)
        gone: list[Upload] = []
        with self._lock:
            now = time.monotonic()
            gone += [self._open.pop(t) for t, u in list(self._open.items()) if u.until < now]
            while len(self._open) >= _MOST_OPEN:
                gone.append(self._open.popitem(last=False)[1])
            self._open[token] = upload
        for old in gone:
            old.path.unlink(missing_ok=True)
        return token

    def _find(self, token: str) -> Upload:
        with self._lock:
            upload = self._open.get(token)
            if upload is not None and upload.until > time.monotonic():
                self._open.move_to_end(token)
                return upload
        raise HubError(404, "there is no such upload any more", hint="Push again: what is missing is then asked for.")


class _Whole(Sink):
    """A file that comes in one request, into a file of its own: a client that is cut may send it again at once."""

    slow = True

    def __init__(self, uploads: Uploads, token: str, upload: Upload) -> None:
        self._uploads = uploads
        self._token = token
        self._upload = upload
        self._spool = uploads._spool
        self._path = self._spool.part()
        self._hasher = hashlib.sha256()
        self._size = 0
        with self._spool.writing():
            self._file = self._path.open("wb", buffering=0)

    def write(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._upload.size:
            raise too_large(f"{self._upload.size} bytes were declared, and there are more")
        self._hasher.update(data)
        with self._spool.writing():
            _write_all(self._file.fileno(), data, None)

    def finish(self) -> Answer:
        if self._size != self._upload.size:
            raise bad_request(f"{self._upload.size} bytes were declared, and {self._size} came", "Push again.")
        self._file.close()
        self._uploads.keep(self._token, self._upload, self._path, self._hasher.hexdigest())
        return Answer(headers={"etag": f'"{self._upload.sha256}"'})

    def abort(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


class _Part(Sink):
    """One part, written where it belongs in the file."""

    def __init__(self, spool: Spool, upload: Upload, number: int) -> None:
        self._spool = spool
        self._upload = upload
        self._number = number
        self._at = self._start = (number - 1) * upload.part
        self._end = min(self._start + upload.part, upload.size)
        self._etag = blake3.blake3()
        with spool.writing():
            self._fd = os.open(upload.path, os.O_WRONLY | os.O_CREAT, 0o600)
        with upload.lock:
            upload.turns[number] = self
            upload.etags.pop(number, None)
            if self._start < upload.hashed:
                upload.hasher, upload.hashed = hashlib.sha256(), 0  # sent again: it may be other bytes
            # Parts come in order as a rule: then the file is hashed while it comes, and not read again.
            self._hasher = upload.hasher.copy() if upload.hashed == self._start else None

    def write(self, data: bytes) -> None:
        if self._at + len(data) > self._end:
            raise too_large(f"the part is over {self._end - self._start} bytes")
        with self._upload.lock, self._spool.writing():
            self._check_turn()
            _write_all(self._fd, data, self._at)
        self._at += len(data)
        self._etag.update(data)
        if self._hasher is not None:
            self._hasher.update(data)

    def finish(self) -> Answer:
        if self._at != self._end:
            raise bad_request(f"the part has {self._end - self._start} bytes, and {self._at - self._start} came")
        etag = f'"{self._etag.hexdigest(16)}"'
        with self._upload.lock:
            self._check_turn()
            if self._hasher is not None and self._upload.hashed == self._start:
                self._upload.hasher, self._upload.hashed = self._hasher, self._end
            self._upload.etags[self._number] = etag
        self.abort()
        return Answer(headers={"etag": etag})

    def _check_turn(self) -> None:
        if self._upload.closed or self._upload.turns[self._number] is not self:
            raise HubError(409, "this part is being sent anew, or the file is complete", hint="Push again.")

    def abort(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _hashed(upload: Upload) -> str:
    if upload.hashed == upload.size:
        return str(upload.hasher.hexdigest())
    hasher = hashlib.sha256()
    try:
        with upload.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
    except FileNotFoundError:
        raise HubError(404, "there is no such upload any more", hint="Push again.") from None
    return hasher.hexdigest()


def _write_all(fd: int, data: bytes, offset: int | None) -> None:
    view = memoryview(data)
    while view:
        written = os.write(fd, view) if offset is None else os.pwrite(fd, view, offset)
        view = view[written:]
        offset = None if offset is None else offset + written


def _json(value: dict[str, Any]) -> Answer:
    import orjson

    return Answer(headers=LFS_JSON, body=orjson.dumps(value))
