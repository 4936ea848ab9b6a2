"""Web servers on loopback: one with files, one that speaks the hub's API."""

from __future__ import annotations

import hashlib
import http.server
import json
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
    headers: dict[str, str] = field(default_factory=dict)
    etag: str | None = '"1"'
    #: How many bytes of an answer are sent before the connection is cut; one number an answer, then no cuts.
    cuts: list[int] = field(default_factory=list)
    length: bool = True
    ranges: bool = True
    #: Instead of cutting the connection, keep it and send no more.
    hang: bool = False


@dataclass
class Site:
    """A running server: `files` by path, and what it was asked, as (method, path, headers)."""

    url: str
    files: dict[str, File]
    asked: list[tuple[str, str, dict[str, str]]]

    def ranges(self) -> list[str]:
        return [headers["range"] for _, _, headers in self.asked if "range" in headers]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    answer: Callable[[str, str, dict[str, str]], File]
    asked: list[tuple[str, str, dict[str, str]]]

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.asked.append((self.command, self.path, headers))
        file = type(self).answer(self.command, self.path, headers)
        begin, status = 0, file.status
        wanted = headers.get("range", "")
        if file.ranges and status == 200 and wanted.startswith("bytes="):
            first = int(wanted.removeprefix("bytes=").partition("-")[0])
            if headers.get("if-range") in (None, file.etag):
                begin, status = first, 206
                if first >= len(file.content):
                    self.send_response(416)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
        body = file.content[begin:]
        self.send_response(status)
        if file.length:
            self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{len(file.content) - 1}/{len(file.content)}")
        if file.etag is not None:
            self.send_header("ETag", file.etag)
        for name, value in file.headers.items():
            self.send_header(name, value)
        if not file.length:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = bool(file.cuts)
        if cut:
            body = body[: file.cuts.pop(0)]
            self.close_connection = True
        try:
            self.wfile.write(body)
            while cut and file.hang:
                time.sleep(0.01)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        if not file.length:
            self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def _serving(answer: Callable[[str, str, dict[str, str]], File], asked: list[Any]) -> Iterator[str]:
    handler = type("Handler", (_Handler,), {"answer": staticmethod(answer), "asked": asked})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def site(files: dict[str, File] | None = None) -> Iterator[Site]:
    """A web server with these files, which may change while it runs."""
    known = {} if files is None else files
    asked: list[tuple[str, str, dict[str, str]]] = []

    def answer(_method: str, path: str, _headers: dict[str, str]) -> File:
        return known.get(urlsplit(path).path, File(b"not here", status=404))

    with _serving(answer, asked) as url:
        yield Site(url, known, asked)


@dataclass
class Hub:
    """A running hub with one repository, `org/tiny`, whose newest commit is `commit`."""

    url: str
    files: dict[str, bytes]
    asked: list[tuple[str, str, dict[str, str]]]
    commit: str = "c" * 40
    status: int = 200
    code: str = ""
    #: What a file is on its way, where that is not what the list declares.
    altered: dict[str, bytes] = field(default_factory=dict)

    def downloaded(self) -> list[str]:
        return [path.rpartition("/")[2] for method, path, _ in self.asked if method == "GET" and "/resolve/" in path]


@contextmanager
def hub(files: dict[str, bytes]) -> Iterator[Hub]:
    """A server of the hub's API, as far as pulling a model needs it."""
    asked: list[tuple[str, str, dict[str, str]]] = []
    running = Hub("", files, asked)

    def refused(status: int, code: str) -> File:
        return File(b'{"error": "no"}', status=status, headers={"X-Error-Code": code} if code else {})

    def answer(_method: str, path: str, _headers: dict[str, str]) -> File:
        path = unquote(urlsplit(path).path)
        if running.status != 200:
            return refused(running.status, running.code)
        if path.startswith("/api/models/"):
            repository, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            if repository != "org/tiny":
                return refused(404, "RepoNotFound")
            if revision not in ("", "main", running.commit):
                return refused(404, "RevisionNotFound")
            return File(
                json.dumps({"id": repository, "sha": running.commit, "siblings": siblings()}).encode(), etag=None
            )
        repository, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repository != "org/tiny" or revision != running.commit or name not in running.files:
            return refused(404, "EntryNotFound")
        digest = hashlib.sha256(running.files[name]).hexdigest()
        content = running.altered.get(name, running.files[name])
        return File(content, etag=f'"{digest}"', headers={"X-Repo-Commit": running.commit})

    def siblings() -> list[dict[str, Any]]:
        listed = []
        for name, content in running.files.items():
            sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
            if name.endswith((".safetensors", ".gguf", ".bin")):
                sha256 = hashlib.sha256(content).hexdigest()
                sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            listed.append(sibling)
        return listed

    with _serving(answer, asked) as url:
        running.url = url
        yield running
