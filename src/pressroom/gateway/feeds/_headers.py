"""Headers that travel from a message to its answer, and to the gateway."""

from __future__ import annotations

import re
from collections.abc import Mapping

_MOST = 64
_VALUE_LIMIT = 8_192
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}")
_VALUE = re.compile(r"[\t\x20-\x7e]*")
# What a broker itself understands must not travel: `Nats-Rollup: all` would empty the stream of the answers.
_OF_BROKERS = ("nats-", "status", "description", "content-type", "content-length", "content-encoding")
# W3C's trace context: the only headers of a message that the gateway is given.
_TRACE = ("traceparent", "tracestate")


def carried(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a message that its answer has too: those that any broker can hold, and none that one acts on."""
    kept: dict[str, str] = {}
    for name, value in headers.items():
        if len(kept) < _MOST and not name.lower().startswith(_OF_BROKERS) and _fits(name, value):
            kept[name] = value
    return kept


def trace_lines(headers: Mapping[str, str]) -> bytes:
    """The lines of an HTTP head that carry the trace of a message."""
    lines = b""
    for name, value in headers.items():
        if name.lower() in _TRACE and _fits(name, value):
            lines += f"{name.lower()}: {value}\r\n".encode("ascii")
    return lines


def _fits(name: str, value: str) -> bool:
    return bool(_NAME.fullmatch(name)) and len(value) <= _VALUE_LIMIT and bool(_VALUE.fullmatch(value))
