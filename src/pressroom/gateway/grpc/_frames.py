"""Frames of HTTP/2 (RFC 9113): their numbers, and the bytes of those that are sent."""

from __future__ import annotations

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ACK = END_STREAM = 0x1
END_HEADERS, PADDED, PRIORITIZED = 0x4, 0x8, 0x20
# Length (its first byte, and the rest), type, flags, stream.
HEAD = struct.Struct(">BHBBL")
HEAD_BYTES = 9
MOST = 0x7FFF_FFFF

# Identifiers of settings.
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 3, 4, 5, 6
ENABLE_PUSH = 2
# What holds until a peer says otherwise.
DEFAULT_WINDOW, DEFAULT_FRAME = 65_535, 16_384
LARGEST_FRAME = (1 << 24) - 1

# Why a stream or a connection ends.
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR = 5, 6, 7, 8, 9
ENHANCE_YOUR_CALM = 11


def frame(kind: int, payload: bytes, *, flags: int = 0, stream: int = 0) -> bytes:
    """A frame."""
    size = len(payload)
    return HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, b"".join([struct.pack(">HL", *each) for each in values.items()]))


def window_update(stream: int, bytes_more: int) -> bytes:
    """Lets the peer send more on a stream, or on the whole connection (0)."""
    return frame(WINDOW_UPDATE, bytes_more.to_bytes(4, "big"), stream=stream)


def reset(stream: int, reason: int) -> bytes:
    """Ends a stream at once."""
    return frame(RST_STREAM, reason.to_bytes(4, "big"), stream=stream)


def go_away(last: int, reason: int, why: bytes = b"") -> bytes:
    """Ends a connection; streams after `last` were not looked at."""
    return frame(GOAWAY, struct.pack(">LL", last, reason) + why)


SETTINGS_ACK = frame(SETTINGS, b"", flags=ACK)
