"""One request to a web server: redirects only to safe places, passwords only where they belong, failures in two kinds.

A failure that another attempt may mend is a `Cut`; one that it may not is a SourceError, whose facts have the `status`.
"""

from __future__ import annotations

import email.utils
import http.client
import re
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pressroom.kernel import SourceError
from pressroom.registry.sources._address import Address, is_this_machine, same_origin, without_query
from pressroom.registry.sources._naming import shown
from pressroom.registry.sources._partial import Plan

_TIMEOUT_S = 30
# What a server may make us wait before we ask again.
_MOST_WAIT_S = 120.0
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Cut(Exception):
    """No answer, an answer that broke off, or one that says "later"; after `wait_s` seconds, where it says when."""

    def __init__(self, said: str, *, wait_s: float = 0.0) -> None:
        super().__init__(said)
        self.wait_s = wait_s


class Unsatisfied(Exception):
    """The server has no such range (416)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer: `first`, `last` and `total` are those of a range that was given, None where it was not;
    `length` is the length of the body; `mark` promises equal bytes as long as it stays the same, "" where none does."""

    response: Any
    status: int
    first: int | None
    last: int | None
    total: int | None
    length: int | None
    mark: str

    def read(self, most: int) -> bytes:
        """What is there, b"" at the end. Raises Cut."""
        try:
            # What is there, not as much as is asked for: a slow line is heard of, and a cut loses nothing that came.
            found: bytes = self.response.read1(most)
        except (OSError, http.client.HTTPException) as error:
            raise Cut(f"could not be fetched to the end: {_reason(error)}") from error
        return found

    def is_part(self, first: int, last: int, plan: Plan) -> bool:
        """Whether it is these bytes, or the first of them, of the file that was begun, and of no other."""
        begins = (self.first, self.total, self.mark) == (first, plan.size, plan.mark)
        return begins and self.last is not None and first <= self.last <= last

    def close(self) -> None:
        self.response.close()


class Web:
    """Asks web servers, as `agent`. Thread-safe."""

    def __init__(self, *, agent: str = "pressroom") -> None:
        self._agent = agent

    @cached_property
    def _opener(self) -> urllib.request.OpenerDirector:
        # One context for all: reading the certificates takes longer than a request.
        secure = urllib.request.HTTPSHandler(context=ssl.create_default_context())
        return urllib.request.build_opener(_SafeRedirects, secure)

    def ask(self, address: Address, *, first: int | None = None, last: int | None = None, mark: str = "") -> Answer:
        """Ask for a file, or with `first` and `last` for these bytes of it, both included; with `mark`, only if the
        file still has that mark, and for all of it otherwise.

        Raises:
            SourceError: the server refuses, or leads elsewhere than it may.
            Cut: it does not answer, or not now.
            Unsatisfied: it has no such bytes.
        """
        headers = {"User-Agent": self._agent, "Accept-Encoding": "identity"}
        request = urllib.request.Request(address.url, headers=headers)  # noqa: S310  the scheme was checked
        if address.authorization:
            request.add_unredirected_header("Authorization", address.authorization)
        if first is not None:
            request.add_header("Range", f"bytes={first}-{last}")
            if mark:
                request.add_header("If-Range", mark)
        try:
            return _answer(self._opener.open(request, timeout=_TIMEOUT_S))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and first is not None:
                raise Unsatisfied from error
            raise _refused(address, error) from error
        except http.client.InvalidURL as error:
            # Where a redirect points to; its text may quote a password.
            raise SourceError(f"{address.shown} leads to what is no address", hint="Check it.") from error
        except (OSError, http.client.HTTPException) as error:
            raise Cut(f"could not be fetched to the end: {_reason(error)}") from error


def _answer(response: Any) -> Answer:
    headers = response.headers
    if headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        # Its length, ranges and digest would be those of something else.
        response.close()
        raise SourceError(
            f"{without_query(response.url)} comes packed ({shown(headers['Content-Encoding'])}), though it was asked "
            "for as it is",
            hint="Download it with a browser or curl, and pull the file.",
        )
    found = _RANGE.fullmatch(headers.get("Content-Range", "").strip()) if response.status == 206 else None
    first, last, total = (int(number) for number in found.groups()) if found else (None, None, None)
    length = headers.get("Content-Length", "")
    return Answer(
        response, response.status, first, last, total, int(length) if length.isdecimal() else None, _mark(headers)
    )


def _mark(headers: Any) -> str:
    """What the server promises equal bytes by: a strong ETag; or a date of the last change that lies before the second
    of the answer, for in one second there may be two changes (RFC 9110, 8.8.2.2)."""
    tag = headers.get("ETag", "").strip()
    if tag:
        return tag if re.fullmatch(r'"[\x21\x23-\x7e]*"', tag) else ""
    changed, now = headers.get("Last-Modified", ""), headers.get("Date", "")
    try:
        apart = email.utils.parsedate_to_datetime(now) - email.utils.parsedate_to_datetime(changed)
        return changed if apart.total_seconds() >= 1 else ""
    except (ValueError, TypeError):  # TypeError: one has a time zone and the other has not
        return ""


def _refused(address: Address, error: urllib.error.HTTPError) -> Exception:
    # The reason is the server's own words; urllib puts lines of its own behind it.
    said = f"answered {error.code} {shown(str(error.reason).partition(chr(10))[0])}"
    if error.code >= 500 or error.code in (408, 429):
        wait_s = _wait(error.headers.get("Retry-After", ""))
        return Cut(f"{said} and asks to wait {wait_s:.0f} s" if wait_s else said, wait_s=wait_s)
    return SourceError(
        f"{address.shown} {said}",
        hint="Check the address.",
        status=error.code,
        reason=error.headers.get("X-Error-Code", ""),
    )


def _wait(text: str) -> float:
    """Seconds until a server wants to be asked again."""
    if text.strip().isdecimal():
        return min(float(text), _MOST_WAIT_S)
    return 0.0


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)  # URLError wraps what happened
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return shown(str(reason) or type(reason).__name__)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        try:
            address = Address.parse(newurl, plain=req.full_url)
            if is_this_machine(newurl) and not is_this_machine(req.full_url):
                # A stranger must not have this machine ask its own services, which trust whoever is on it.
                raise SourceError(
                    f"{without_query(req.full_url)} is refused: it leads to {address.shown}, which is this machine",
                    hint="Do not use this address.",
                )
        except SourceError:
            fp.close()
            raise
        further = super().redirect_request(req, fp, code, msg, headers, newurl)
        secret = req.unredirected_hdrs.get("Authorization")
        if further is not None and secret and same_origin(req.full_url, newurl):
            further.add_unredirected_header("Authorization", secret)
        return further
