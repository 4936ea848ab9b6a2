"""A parser of multipart/form-data (RFC 7578) that is fed as the body comes, and keeps no more than a delimiter of it.

Strict about framing: a body without its closing delimiter was cut, and is not a smaller file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol
from urllib.parse import unquote

from pressroom.gateway.batches.base import BatchError

_HEAD_LIMIT = 8_192
_PREAMBLE_LIMIT = 8_192
_PARTS_LIMIT = 32
# What RFC 2046 allows in a boundary, which is at most 70 long.
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_PARAMETER = re.compile(r';\s*([0-9A-Za-z!#$&+\-^_`|~.*]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;"\s]*)')
_ESCAPED = re.compile(r"\\([\"\\])")


class _At(Enum):
    PREAMBLE = auto()
    DELIMITER = auto()  # behind one: a part follows, or the end
    HEAD = auto()
    BODY = auto()
    END = auto()


@dataclass(frozen=True, slots=True)
class Part:
    """A field of the form. `filename` is None where it is not a file; what a client wrote, never a path."""

    name: str
    filename: str | None = None


class PartTaker(Protocol):
    """Who takes the parts, one after another."""

    def part_begins(self, part: Part) -> None: ...

    def part_data(self, data: bytes) -> None: ...

    def part_ends(self) -> None: ...


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type header announces. Raises BatchError where it is not of a form."""
    kind, _, rest = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        raise BatchError(
            f"The Content-Type of an upload is multipart/form-data, not {kind.strip()[:80]!r}.",
            status=415,
            reason="invalid_content_type",
        )
    found = _parameters(";" + rest).get("boundary", "")
    if not _BOUNDARY.fullmatch(found):
        raise malformed("its Content-Type names no valid boundary")
    return found.encode("ascii")


class Multipart:
    """Feed it the body with `feed`, then call `finish`. Both raise BatchError on what is not a form."""

    def __init__(self, boundary: bytes, taker: PartTaker) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._taker = taker
        # A delimiter begins with the line break before it; the first one may have none.
        self._buffer = bytearray(b"\r\n")
        self._at = _At.PREAMBLE
        self._parts = 0

    def feed(self, data: bytes) -> None:
        self._buffer += data
        while self._step():
            pass

    def finish(self) -> None:
        if self._at is not _At.END:
            raise malformed("it ends before its closing delimiter; was the upload cut?")

    def _step(self) -> bool:
        """Take what the buffer has; False where more must come first."""
        match self._at:
            case _At.PREAMBLE:
                return self._preamble()
            case _At.DELIMITER:
                return self._behind_delimiter()
            case _At.HEAD:
                return self._head()
            case _At.BODY:
                return self._body()
            case _At.END:
                self._buffer.clear()  # an epilogue means nothing
                return False

    def _preamble(self) -> bool:
        place = self._buffer.find(self._delimiter)
        if place > _PREAMBLE_LIMIT or (place < 0 and len(self._buffer) > _PREAMBLE_LIMIT):
            raise malformed("it does not begin with its delimiter")
        if place < 0:
            return False
        del self._buffer[: place + len(self._delimiter)]
        self._at = _At.DELIMITER
        return True

    def _behind_delimiter(self) -> bool:
        buffer = self._buffer
        if len(buffer) < 2:
            return False
        if buffer[:2] == b"--":
            self._at = _At.END
            return True
        place = buffer.find(b"\r\n")
        padding = bytes(buffer[: place if place >= 0 else len(buffer)])
        if padding.strip(b" \t\r") or len(padding) > _HEAD_LIMIT:
            raise malformed("a delimiter is followed by something else than a line break")
        if place < 0:
            return False
        # The line break stays: a head without lines is then an empty line, too.
        del buffer[:place]
        self._at = _At.HEAD
        return True

    def _head(self) -> bool:
        place = self._buffer.find(b"\r\n\r\n")
        if place > _HEAD_LIMIT or (place < 0 and len(self._buffer) > _HEAD_LIMIT):
            raise malformed(f"the headers of a part are over {_HEAD_LIMIT} bytes")
        if place < 0:
            return False
        self._parts += 1
        if self._parts > _PARTS_LIMIT:
            raise malformed(f"it has more than {_PARTS_LIMIT} parts")
        part = _part(bytes(self._buffer[:place]))
        del self._buffer[: place + 4]
        self._at = _At.BODY
        self._taker.part_begins(part)
        return True

    def _body(self) -> bool:
        buffer = self._buffer
        place = buffer.find(self._delimiter)
        # What could be the beginning of a delimiter waits.
        upto = place if place >= 0 else len(buffer) - len(self._delimiter) + 1
        if upto > 0:
            self._taker.part_data(bytes(buffer[:upto]))
        if place < 0:
            if upto > 0:
                del buffer[:upto]
            return False
        del buffer[: place + len(self._delimiter)]
        self._at = _At.DELIMITER
        self._taker.part_ends()
        return True


def _part(head: bytes) -> Part:
    disposition = ""
    for line in head.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if line and not colon:
            raise malformed("a line of a part's headers has no colon")
        if name.strip().lower() == b"content-disposition":
            disposition = value.decode("utf-8", errors="replace").strip()
        elif name.strip().lower() == b"content-transfer-encoding" and value.strip().lower() not in (
            b"binary",
            b"8bit",
            b"7bit",
        ):
            raise malformed("a part has a Content-Transfer-Encoding; send the bytes as they are")
    kind = disposition.partition(";")[0].strip().lower()
    found = _parameters(disposition[len(kind) :])
    if kind != "form-data" or "name" not in found:
        raise malformed("a part has no 'Content-Disposition: form-data; name=…'")
    filename = found.get("filename")
    if "filename*" in found:  # RFC 5987: charset'language'percent-encoded
        charset, _, rest = found["filename*"].partition("'")
        if charset.lower() == "utf-8":
            filename = unquote(rest.partition("'")[2], errors="replace")
    return Part(found["name"], filename)


def _parameters(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in _PARAMETER.findall(text):
        if value.startswith('"'):
            value = _ESCAPED.sub(r"\1", value[1:-1]).replace("%22", '"')
        found.setdefault(name.lower(), value)
    return found


def malformed(what: str) -> BatchError:
    return BatchError(
        f"The body of the upload is not valid multipart/form-data: {what}.", status=400, reason="invalid_multipart"
    )
