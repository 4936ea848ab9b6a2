"""Header compression of HTTP/2 (RFC 7541): decoding what clients send, and writing without a table what they get."""

from __future__ import annotations

import functools
from collections import deque

from pressroom.gateway.grpc._huffman import HuffmanError, decode

Header = tuple[bytes, bytes]

# Appendix A: ", " parts two entries, "=" a name and its value.
_STATIC = (
    ":authority, :method=GET, :method=POST, :path=/, :path=/index.html, :scheme=http, :scheme=https, :status=200, "
    ":status=204, :status=206, :status=304, :status=400, :status=404, :status=500, accept-charset, "
    "accept-encoding=gzip;deflate, accept-language, accept-ranges, accept, access-control-allow-origin, age, allow, "
    "authorization, cache-control, content-disposition, content-encoding, content-language, content-length, "
    "content-location, content-range, content-type, cookie, date, etag, expect, expires, from, host, if-match, "
    "if-modified-since, if-none-match, if-range, if-unmodified-since, last-modified, link, location, max-forwards, "
    "proxy-authenticate, proxy-authorization, range, referer, refresh, retry-after, server, set-cookie, "
    "strict-transport-security, transfer-encoding, user-agent, vary, via, www-authenticate"
)
STATIC: list[Header] = [
    (name.encode(), value.replace(";", ", ").encode())
    for name, _, value in (e.partition("=") for e in _STATIC.split(", "))
]
_COUNT = len(STATIC)
# What an entry of a table, and a header in a list of them, counts beside its two strings (4.1).
_OVERHEAD = 32
TABLE_BYTES = 4_096
# No number in a block of headers is larger than this.
_MOST = 1 << 24


class HpackError(ValueError):
    """A block of headers that does not decode. The connection is lost, since its table is."""


class Decoder:
    """Decodes the blocks of one connection, in their order."""

    def __init__(self) -> None:
        self._table: deque[Header] = deque()
        self._size = 0
        self._limit = TABLE_BYTES
        #: Grows with every change of the table. While it does not, equal blocks have equal headers.
        self.changes = 0

    def decode(self, data: bytes, limit: int) -> list[Header] | None:
        """The headers of a block; None where they are over `limit` bytes, counted as RFC 9113, 6.5.2 does.

        Raises:
            HpackError: it does not decode.
        """
        try:
            return self._decode(data, limit)
        except IndexError:
            raise HpackError("the block ends in the middle of a header") from None
        except HuffmanError as error:
            raise HpackError(str(error)) from None

    def _decode(self, data: bytes, limit: int) -> list[Header] | None:
        found: list[Header] = []
        at, end, total = 0, len(data), 0
        while at < end:
            first = data[at]
            if first & 0x80:
                index, at = _number(data, at, 7)
                header = self._entry(index)
            elif first & 0xE0 == 0x20:
                size, at = _number(data, at, 5)
                if total or size > TABLE_BYTES:
                    raise HpackError(f"the table may not be made {size} bytes here")
                self._limit = size
                self._shrink()
                continue
            else:
                kept = bool(first & 0x40)
                index, at = _number(data, at, 6 if kept else 4)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = _string(data, at)
                value, at = _string(data, at)
                header = (name, value)
                if kept:
                    self._table.appendleft(header)
                    self._size += len(name) + len(value) + _OVERHEAD
                    self._shrink()
            total += len(header[0]) + len(header[1]) + _OVERHEAD
            # What is over the limit is read on for the sake of the table, and not kept.
            if total <= limit:
                found.append(header)
        return found if total <= limit else None

    def _entry(self, index: int) -> Header:
        if 0 < index <= _COUNT:
            return STATIC[index - 1]
        place = index - _COUNT - 1
        if not 0 <= place < len(self._table):
            raise HpackError(f"there is no header {index} in the table")
        return self._table[place]

    def _shrink(self) -> None:
        self.changes += 1
        while self._size > self._limit:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + _OVERHEAD


def _number(data: bytes, at: int, bits: int) -> tuple[int, int]:
    """A number that begins in the last `bits` bits of a byte, and where it ends (5.1)."""
    mask = (1 << bits) - 1
    value = data[at] & mask
    at += 1
    if value < mask:
        return value, at
    shift = 0
    while True:
        byte = data[at]
        at += 1
        value += (byte & 0x7F) << shift
        if value > _MOST or shift > 28:
            raise HpackError("a number is too large")
        if byte < 0x80:
            return value, at
        shift += 7


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    coded = data[at] & 0x80
    length, at = _number(data, at, 7)
    end = at + length
    if end > len(data):
        raise HpackError("a string goes on after the end of the block")
    return (_decoded(data[at:end]) if coded else data[at:end]), end


def _decoded(data: bytes) -> bytes:
    # Short ones come again and again; long ones are not worth their memory.
    return _remembered(data) if len(data) <= 64 else decode(data)


_remembered = functools.lru_cache(maxsize=1_024)(decode)


def literal(name: bytes, value: bytes) -> bytes:
    """A header that needs no table: neither Huffman's code nor an index."""
    return b"\0" + _length(name) + name + _length(value) + value


def _length(text: bytes) -> bytes:
    value = len(text)
    if value < 0x7F:
        return bytes((value,))
    found = bytearray(b"\x7f")
    value -= 0x7F
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
