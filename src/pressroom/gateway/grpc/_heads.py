"""What the headers of a call say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

from pressroom.gateway._entrance import NOTHING, Said, said_in
from pressroom.gateway.grpc._hpack import Header

_CONTENT_TYPE = b"application/grpc"
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_TIMEOUT_DIGITS = 8
_PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority"))
_CONTROL = re.compile(rb"[\0\r\n]")
# Of one connection and not of a message (RFC 9113, 8.2.2).
_FORBIDDEN = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))


class Code(IntEnum):
    """gRPC's status of a call."""

    OK = 0
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class Malformed(ValueError):
    """Headers that are no request of HTTP/2."""


@dataclass(frozen=True, slots=True)
class Head:
    """Which method is called, in how many seconds at most, and how its messages are compressed. A call that is no call
    of gRPC, or has too much metadata, has a `refusal` and the HTTP status that goes with it."""

    path: bytes = b""
    timeout_s: float | None = None
    encoding: bytes = b"identity"
    refusal: tuple[Code, str] | None = None
    http_status: int = 200
    #: Metadata that says who asks, and how: see `gateway._entrance`.
    said: Said = NOTHING


def head_of(headers: list[Header] | None) -> Head:
    """What decoded headers say; None are those over the limit.

    Raises:
        Malformed: they are not the headers of a request.
    """
    if headers is None:
        return Head(refusal=(Code.RESOURCE_EXHAUSTED, "The metadata of the call is too large."))
    found: dict[bytes, bytes] = {}
    regular = False
    for name, value in headers:
        if name[:1] == b":":
            if regular or name in found or name not in _PSEUDO:
                raise Malformed(repr(name))
        else:
            regular = True
            if not name or name != name.lower() or name in _FORBIDDEN:
                raise Malformed(repr(name))
        if _CONTROL.search(value) or _CONTROL.search(name):
            raise Malformed(repr(value))
        found[name] = value
    if found.get(b"te", b"trailers") != b"trailers":
        raise Malformed("te")
    if found.keys().isdisjoint(_PSEUDO):
        return Head()  # trailers
    path = found.get(b":path")
    if path is None or b":scheme" not in found or b":method" not in found:
        raise Malformed("there is no path, method or scheme")
    if found[b":method"] != b"POST":
        return Head(path, refusal=(Code.INTERNAL, "A method of gRPC is called with POST."), http_status=405)
    if not found.get(b"content-type", b"").startswith(_CONTENT_TYPE):
        message = "The content-type of a call begins with application/grpc."
        return Head(path, refusal=(Code.INTERNAL, message), http_status=415)
    timeout_s = None
    timeout = found.get(b"grpc-timeout")
    if timeout is not None:
        digits, unit = timeout[:-1], _UNITS.get(timeout[-1:])
        if unit is None or not digits.isdigit() or len(digits) > _TIMEOUT_DIGITS:
            message = f"The grpc-timeout {timeout[:40]!r} is not understood."
            return Head(path, refusal=(Code.INTERNAL, message))
        timeout_s = int(digits) * unit
    return Head(path, timeout_s, found.get(b"grpc-encoding", b"identity"), said=said_in(found))
