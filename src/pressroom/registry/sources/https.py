"""`https://…`: one file, or an archive, from a web server; resumed after a cut."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import urllib.error
import urllib.request
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from pressroom.kernel import NetworkError, OfflineError, Progress, SourceError
from pressroom.registry.sources._space import room_for, written
from pressroom.registry.sources.base import Fetched, Found, Order, Source
from pressroom.registry.sources.path import local_file

_CHUNK = 1 << 20
_SHA256 = re.compile(r"sha256=([0-9a-fA-F]{64})")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_TIMEOUT_S = 30
# Times a connection that broke half-way is taken up again before the run gives up (what is there stays).
_RESUMES = 5


class Backend(Source):
    """A web server; `#sha256=HEX` behind the address says what the file must be."""

    form = "https://HOST/PATH[#sha256=HEX]"

    def pinned(self, spec: str) -> bool:
        _checked(spec)
        return False  # what lies there may change

    def fetch(self, order: Order) -> Fetched:
        url = _checked(order.spec)
        shown = _without_credentials(url)
        declared = _SHA256.fullmatch(order.member or "")
        if order.offline:
            raise OfflineError(
                f"{shown} is not in this workspace, and `offline` is on", hint="Give the path of a file."
            )
        name = unquote(PurePosixPath(urlsplit(url).path).name) or urlsplit(url).hostname or "download"
        local = order.workdir / "body"
        _Download(url, shown, local, order).run()
        if declared is not None and _sha256(local) != declared[1].lower():
            found = _sha256(local)
            local.unlink()
            raise SourceError(
                f"{shown} is not what was declared: SHA-256 {found}, expected {declared[1].lower()}",
                hint="It was altered, or the digest is another file's. Do not use it before you know which.",
            )
        _refuse_page(local, shown)
        inside = Order(
            spec=order.spec,
            member=None if declared else order.member,
            workdir=order.workdir,
            offline=order.offline,
            events=order.events,
        )
        fetched = local_file(local, inside, origin=shown, name=name)
        if declared is None:
            return fetched
        files = tuple(
            Found(path=f.path, local=f.local, sha256=declared[1].lower() if f.local == local else f.sha256)
            for f in fetched.files
        )
        return Fetched(name=fetched.name, origin=f"{shown}#{order.member}", files=files, left_out=fetched.left_out)


class _Download:
    """One file, begun where an earlier run was cut: `body` with what is there, `body.json` with what it is of."""

    def __init__(self, url: str, shown: str, local: Path, order: Order) -> None:
        self._url = url
        self._shown = shown
        self._local = local
        self._state = local.with_suffix(".json")
        self._events = order.events

    def run(self) -> None:
        for attempt in range(_RESUMES + 1):
            try:
                self._once()
                return
            except urllib.error.HTTPError as error:
                if error.code < 500 or attempt == _RESUMES:
                    raise SourceError(
                        f"{self._shown} answered {error.code} {error.reason}", hint="Check the address."
                    ) from error
            except (OSError, http.client.HTTPException) as error:
                if attempt == _RESUMES:
                    raise NetworkError(
                        f"{self._shown} could not be fetched to the end: {error}",
                        hint="Check the network and run the same command again: it goes on where it was.",
                    ) from error

    def _once(self) -> None:
        have, tag = self._held()
        request = urllib.request.Request(self._url, headers={"User-Agent": "pressroom", "Accept-Encoding": "identity"})  # noqa: S310  the scheme was checked
        if have:
            request.add_header("Range", f"bytes={have}-")
            request.add_header("If-Range", tag)
        try:
            response = _opener().open(request, timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            if error.code == 416 and have:  # nothing is missing, or the file changed: begin again to know which
                self._local.unlink(missing_ok=True)
                self._state.unlink(missing_ok=True)
                return self._once()
            raise
        with response:
            begin = have if response.status == 206 else 0
            length = response.headers.get("Content-Length")
            total = begin + int(length) if length and length.isdecimal() else None
            tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            # Without a mark that says it is the same file, what is here cannot be continued later.
            self._state.write_text(json.dumps({"tag": "" if tag.startswith("W/") else tag, "total": total}))
            if total is not None:
                room_for(self._local.parent, total - begin, what=self._shown)
            self._receive(response, begin, total)

    def _receive(self, response: Any, begin: int, total: int | None) -> None:
        done = begin
        name = PurePosixPath(urlsplit(self._url).path).name or "file"
        with written(self._local, "ab" if begin else "wb") as out:
            while True:
                try:
                    chunk = response.read(_CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise http.client.IncompleteRead(b"", None) from error
                if not chunk:
                    break
                out.write(chunk)
                done += len(chunk)
                self._events.emit(Progress(f"downloading {name}", done, total))
        if total is not None and done != total:
            raise http.client.IncompleteRead(b"", total - done)

    def _held(self) -> tuple[int, str]:
        try:
            tag = json.loads(self._state.read_text())["tag"]
            return (self._local.stat().st_size, tag) if tag else (0, "")
        except (OSError, ValueError, KeyError, TypeError):
            return 0, ""


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _checked(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_SafeRedirects)


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        raise SourceError(f"{url!r} is not an address: {error}", hint="Write https://HOST/PATH.") from error
    if not host or (parts.scheme != "https" and not (parts.scheme == "http" and host in _LOOPBACK)):
        raise SourceError(
            f"{_without_credentials(url)} is refused: weights come over https, or http from this machine",
            hint="Write https://HOST/PATH.",
            asked=_without_credentials(url),
        )
    return url


def _without_credentials(url: str) -> str:
    """The address as it may be shown and kept: no user, no password, no query (it may be signed)."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_page(local: Path, shown: str) -> None:
    with local.open("rb") as file:
        head = file.read(512).lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        raise SourceError(
            f"{shown} is a web page, not a file of weights",
            hint="Use the address of the file itself; for a model of the hub write hf:ORG/NAME.",
        )
