"""Web servers on loopback: one with files, one that speaks the hub's API."""

from __future__ import annotations

import hashlib
import http.server
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class File:
    """One answer of a web server."""

    content: bytes = b""
    status: int = 200
    #: The hub's word for an error.
    code: str = ""
    #: The status of the next answers, one each, before that of all others.
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    etag: str | None = '"1"'
    #: How many bytes of an answer are sent before the connection is cut; one number an answer, then no cuts.
    cuts: list[int] = field(default_factory=list)
    length: bool = True
    #: The length that is said, where it is not the true one.
    claims: int | None = None
    ranges: bool = True
    #: Gives the range also where the file is not the one of If-Range any more.
    trusting: bool = False
    #: How far a range begins behind the byte that is said to be its first, and how long the file is said to be.
    lies: int = 0
    total: int | str | None = None
    #: Instead of cutting the connection, keep it and send no more.
    hang: bool = False
    #: Seconds before each 64 KiB of an answer.
    slow: float = 0.0
    #: It is no file, and does not count as sent.
    talk: bool = False
    #: Called before an answer with the headers of the question.
    before: Callable[[dict[str, str]], None] | None = None


@dataclass
class Asked:
    """What a server was asked, as (method, path, headers), and how many bytes of files it has sent."""

    questions: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    sent: int = 0
    #: Answers that are kept open and bring no more, answers under way, and the most of these at one time.
    hung: int = 0
    busy: int = 0
    busiest: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Site:
    """A running server: `files` by path, and what it was asked, as (method, path, headers)."""

    url: str
    files: dict[str, File]
    log: Asked

    @property
    def asked(self) -> list[tuple[str, str, dict[str, str]]]:
        return self.log.questions

    @property
    def sent(self) -> int:
        return self.log.sent

    def ranges(self) -> list[str]:
        return [headers["range"] for _, _, headers in self.asked if "range" in headers]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answer: Callable[[str, str, dict[str, str]], File]
    log: Asked

    def do_GET(self) -> None:
        with self.log.lock:
            self.log.busy += 1
            self.log.busiest = max(self.log.busy, self.log.busiest)
        try:
            self._answer()
        finally:
            with self.log.lock:
                self.log.busy -= 1

    def _answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.log.lock:
            self.log.questions.append((self.command, self.path, headers))
        file = type(self).answer(self.command, self.path, headers)
        if file.before is not None:
            file.before(headers)
        status = file.statuses.pop(0) if file.statuses else file.status
        begin, end = 0, len(file.content)
        wanted = headers.get("range", "")
        if file.ranges and status == 200 and wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            if file.trusting or headers.get("if-range") in (None, file.etag):
                begin, status = int(first), 206
                end = min(end, int(last) + 1) if last else end
                if begin >= len(file.content):
                    self.send_response(416)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
        body = file.content[begin:end]
        self.send_response(status)
        if file.length:
            self.send_header("Content-Length", str(len(body) if file.claims is None else file.claims))
        if status == 206:
            said = begin + file.lies
            self.send_header("Content-Range", f"bytes {said}-{said + len(body) - 1}/{file.total or len(file.content)}")
        if file.etag is not None:
            self.send_header("ETag", file.etag)
        for name, value in file.headers.items():
            self.send_header(name, value)
        if not file.length or file.claims is not None:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = bool(file.cuts)
        if cut:
            body = body[: file.cuts.pop(0)]
            self.close_connection = True
        try:
            for at in range(0, len(body), 1 << 16):
                if file.slow:
                    time.sleep(file.slow)
                self.wfile.write(body[at : at + (1 << 16)])
                with self.log.lock:
                    if status in (200, 206) and not file.talk:
                        self.log.sent += len(body[at : at + (1 << 16)])
            if cut and file.hang:
                with self.log.lock:
                    self.log.hung += 1
            while cut and file.hang:
                time.sleep(0.01)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self.close_connection = True
        if not file.length or file.claims is not None:
            self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def _serving(
    answer: Callable[[str, str, dict[str, str]], File], log: Asked, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    handler = type("Handler", (_Handler,), {"answer": staticmethod(answer), "log": log})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def site(files: dict[str, File] | None = None, *, tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    """A web server with these files, which may change while it runs."""
    known = {} if files is None else files
    log = Asked()

    def answer(_method: str, path: str, _headers: dict[str, str]) -> File:
        return known.get(urlsplit(path).path, File(b"not here", status=404))

    with _serving(answer, log, tls) as url:
        yield Site(url, known, log)


@dataclass
class Hub:
    """A running hub with one repository, `org/tiny`, whose newest commit is `commit`."""

    url: str
    files: dict[str, bytes]
    log: Asked
    commit: str = "c" * 40
    status: int = 200
    code: str = ""
    #: What a file is on its way, where that is not what the list declares.
    altered: dict[str, bytes] = field(default_factory=dict)
    #: How a file is sent, where that is not plainly.
    manner: dict[str, File] = field(default_factory=dict)
    #: Where files really lie, where that is elsewhere: an address, before the name.
    elsewhere: str = ""

    @property
    def asked(self) -> list[tuple[str, str, dict[str, str]]]:
        return self.log.questions

    @property
    def sent(self) -> int:
        return self.log.sent

    def downloaded(self) -> list[str]:
        return [path.rpartition("/")[2] for method, path, _ in self.asked if method == "GET" and "/resolve/" in path]


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    """A server of the hub's API, as far as pulling a model needs it."""
    running = Hub("", files, Asked())

    def refused(status: int, code: str) -> File:
        return File(b'{"error": "no"}', status=status, headers={"X-Error-Code": code} if code else {})

    def answer(_method: str, path: str, _headers: dict[str, str]) -> File:
        path = unquote(urlsplit(path).path)
        if path.startswith("/inside/"):
            return File(running.files[path.removeprefix("/inside/")])
        if running.status != 200:
            return refused(running.status, running.code)
        if path.startswith("/api/models/"):
            repository, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            if repository != "org/tiny":
                return refused(404, "RepoNotFound")
            if revision not in ("", "main", running.commit):
                return refused(404, "RevisionNotFound")
            return File(
                json.dumps({"id": repository, "sha": running.commit, "siblings": siblings()}).encode(),
                etag=None,
                talk=True,
            )
        repository, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repository != "org/tiny" or revision != running.commit or name not in running.files:
            return refused(404, "EntryNotFound")
        if running.elsewhere:
            return File(status=302, headers={"Location": f"{running.elsewhere}/{name}", "X-Repo-Commit": revision})
        digest = hashlib.sha256(running.files[name]).hexdigest()
        content = running.altered.get(name, running.files[name])
        sent = running.manner.get(name, File())
        sent.content, sent.etag, sent.headers = content, f'"{digest}"', {"X-Repo-Commit": running.commit}
        if sent.status != 200:
            sent.headers["X-Error-Code"] = sent.code
        return sent

    def siblings() -> list[dict[str, Any]]:
        listed = []
        for name, content in running.files.items():
            sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": git_name(content)}
            if name.endswith((".safetensors", ".gguf", ".bin")):
                sha256 = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            listed.append(sibling)
        return listed

    with _serving(answer, running.log) as url:
        running.url = url
        yield running
