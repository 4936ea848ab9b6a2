"""`https://…`: one file, or an archive, from a web server; resumed after a cut."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pressroom.kernel import NetworkError, OfflineError, Progress, SourceError
from pressroom.registry.base import is_inner_path
from pressroom.registry.sources._space import room_for, written
from pressroom.registry.sources.base import Fetched, Order, Source, with_member
from pressroom.registry.sources.path import local_file

_CHUNK = 1 << 20
_SHA256 = re.compile(r"sha256=([0-9a-fA-F]{64})")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_TIMEOUT_S = 30
# Times in a row that a connection may bring nothing new, once it has brought something, before the run gives up.
_MOST_FAILURES = 3
_PAUSE_S = 0.25
# What an address may hold as it is; everything else is percent-encoded.
_PLAIN = "/%:@!$&'()*+,;=~-._?"


class Backend(Source):
    """A web server; `#sha256=HEX` behind the address says what the file must be."""

    form = "https://HOST/PATH[#sha256=HEX]"

    def exact(self, spec: str, member: str | None) -> str | None:
        address = _Address.parse(spec)
        digest = _declared(member)
        return with_member(address.shown, f"sha256={digest}") if digest else None

    def fetch(self, order: Order) -> Fetched:
        address = _Address.parse(order.spec)
        digest = _declared(order.member)
        if order.offline:
            raise OfflineError(
                f"{address.shown} is not in this workspace, and `offline` is on",
                hint="Pull it once with offline = false, or give the path of the file.",
            )
        local = order.workdir / "body"
        _Download(address, local, order).run()
        _refuse_page(local, address.shown)
        if digest is None:
            return local_file(local, order, origin=address.shown, name=address.name)
        _matches(local, digest, address.shown)
        origin = with_member(address.shown, f"sha256={digest}")
        return local_file(local, replace(order, member=None), origin=origin, name=address.name)


@dataclass(frozen=True, slots=True)
class _Address:
    """Where a file is. `url` is without user and password, which `authorization` has; `shown` may be said and kept: it
    is also without the query, which may hold a signature. `name` is what the file is called there."""

    url: str
    authorization: str | None
    shown: str
    name: str

    @classmethod
    def parse(cls, text: str) -> _Address:
        try:
            parts = urlsplit(text)
            host, port = parts.hostname or "", parts.port
            host = host.encode("idna").decode("ascii") if not host.isascii() else host
        except ValueError as error:  # UnicodeError among them
            raise SourceError(
                f"{_without_credentials(text)!r} is not an address", hint="Write https://HOST/PATH."
            ) from error
        secure = parts.scheme == "https" or (parts.scheme == "http" and host in _LOOPBACK)
        if not re.fullmatch(r"[A-Za-z0-9._:-]+", host) or not secure or re.search(r"[\s\x00-\x1f\x7f]", text):
            raise SourceError(
                f"{_without_credentials(text)!r} is refused: weights come over https, or http from this machine",
                hint="Write https://HOST/PATH.",
            )
        place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
        path = quote(parts.path, safe=_PLAIN)
        authorization = None
        if parts.username is not None:
            secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + b64encode(secret.encode()).decode()
        name = PurePosixPath(unquote(parts.path)).name
        return cls(
            url=urlunsplit((parts.scheme, place, path, quote(parts.query, safe=_PLAIN), "")),
            authorization=authorization,
            shown=urlunsplit((parts.scheme, place, path, "", "")),
            name=name if is_inner_path(name) else host,
        )


class _Download:
    """One file, begun where an earlier run was cut: `body` with what is there, `body.json` with what it is of."""

    def __init__(self, address: _Address, local: Path, order: Order) -> None:
        self._address = address
        self._local = local
        self._state = local.with_suffix(".json")
        self._events = order.events

    def run(self) -> None:
        """Raises SourceError, NetworkError and StoreFullError."""
        failures, came = 0, 0
        cause: Exception
        while True:
            before = came
            try:
                for count in self._attempt():
                    came += count
                return
            except urllib.error.HTTPError as error:
                error.close()
                if error.code < 500 and error.code not in (408, 429):
                    raise SourceError(
                        f"{self._address.shown} answered {error.code} {error.reason}", hint="Check the address."
                    ) from error
                said, cause = f"answered {error.code} {error.reason}", error
            except http.client.InvalidURL as error:
                # Where a redirect points to; its text may quote a password.
                raise SourceError(f"{self._address.shown} leads to what is no address", hint="Check it.") from error
            except (OSError, http.client.HTTPException) as error:
                said, cause = f"could not be fetched to the end: {error}", error
            failures = 1 if came > before else failures + 1
            # What never answered in this run is not asked again and again.
            if came == 0 or failures >= _MOST_FAILURES:
                raise NetworkError(
                    f"{self._address.shown} {said}",
                    hint="Check the network and run the same command again: it goes on where it was.",
                ) from cause
            time.sleep(_PAUSE_S * failures)

    def _attempt(self) -> Iterator[int]:
        """Fetch what is missing; yields how many bytes came, a block at a time."""
        have, tag = self._held()
        request = urllib.request.Request(  # noqa: S310  the scheme was checked
            self._address.url, headers={"User-Agent": "pressroom", "Accept-Encoding": "identity"}
        )
        if self._address.authorization:
            request.add_unredirected_header("Authorization", self._address.authorization)
        if have:
            request.add_header("Range", f"bytes={have}-")
            request.add_header("If-Range", tag)
        try:
            response = urllib.request.build_opener(_SafeRedirects).open(request, timeout=_TIMEOUT_S)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not have:
                raise
            # Nothing is missing, or the file became shorter: only fetching it anew tells which.
            error.close()
            self._forget()
            yield from self._attempt()
            return
        with response:
            begin = have if response.status == 206 else 0
            if begin and not response.headers.get("Content-Range", "").startswith(f"bytes {begin}-"):
                self._forget()
                raise http.client.HTTPException("it answered with another part than it was asked for")
            length = response.headers.get("Content-Length")
            total = begin + int(length) if length and length.isdecimal() else None
            if not begin:
                # The old bytes go before the mark of the new ones is written: a cut between the two mixes nothing.
                self._forget()
                tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
                if tag and not tag.startswith("W/"):  # a weak mark does not promise equal bytes
                    self._state.write_text(json.dumps({"tag": tag}), encoding="utf-8")
            if total is not None:
                room_for(self._local.parent, total - begin, what=self._address.shown)
            yield from self._receive(response, begin, total)

    def _receive(self, response: Any, begin: int, total: int | None) -> Iterator[int]:
        done = begin
        with written(self._local, "ab") as out:
            while True:
                try:
                    chunk = response.read1(_CHUNK)  # what is there, so that a slow line is heard of
                except OSError as error:
                    # Not OSError: `written` would take it for one of the disk.
                    raise http.client.HTTPException(error.strerror or type(error).__name__) from error
                except http.client.IncompleteRead as error:
                    chunk = error.partial
                    out.write(chunk)
                    yield len(chunk)
                    raise
                if not chunk:
                    break
                out.write(chunk)
                done += len(chunk)
                self._events.emit(Progress(f"downloading {self._address.name}", done, total))
                yield len(chunk)
        if total is not None and done != total:
            raise http.client.HTTPException(f"the connection was cut after {done} of {total} bytes")

    def _held(self) -> tuple[int, str]:
        """How many bytes are here and can be continued, and the mark they had."""
        try:
            tag = json.loads(self._state.read_text(encoding="utf-8"))["tag"]
            return (self._local.stat().st_size, tag) if isinstance(tag, str) and tag else (0, "")
        except (OSError, ValueError, KeyError, TypeError):
            return 0, ""

    def _forget(self) -> None:
        self._local.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _Address.parse(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _declared(member: str | None) -> str | None:
    """The digest that a fragment declares, where it is one."""
    found = _SHA256.fullmatch(member or "")
    if found is None and (member or "").startswith("sha256="):
        raise SourceError(f"{member!r} is not a SHA-256 digest", hint="Write #sha256= and 64 hexadecimal digits.")
    return found[1].lower() if found else None


def _matches(local: Path, digest: str, shown: str) -> None:
    with local.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest:
        raise SourceError(
            f"{shown} is not what was declared: SHA-256 {found}, expected {digest}",
            hint="It was altered, or the digest is another file's. Do not use it before you know which.",
        )


def _without_credentials(url: str) -> str:
    return re.sub(r"//[^/?#]*@", "//", url.partition("?")[0])


def _refuse_page(local: Path, shown: str) -> None:
    with local.open("rb") as file:
        head = file.read(512).lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        raise SourceError(
            f"{shown} is a web page, not a file of weights",
            hint="Use the address of the file itself; for a model of the hub write hf:ORG/NAME.",
        )
