"""The parser of an engine's HTTP/1.1 responses: incremental, strict, bounded.

Own, and not llhttp's: the bytes of a stream are the hot path, and one pass over a read that hands on whole pieces costs
less than a callback for each part of each chunk. It takes what RFC 9112 says a server sends and nothing looser. Where a
response ends is decided by its framing only: llama.cpp ends its header block with `Keep-Alive: timeout=5, max=100`,
whose last bytes are those of an empty chunk, and a search for `0\\r\\n\\r\\n` drops every body.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Protocol

HEAD_LIMIT = 65_536
#: A chunk's size with its extensions.
LINE_LIMIT = 4_096
TRAILER_LIMIT = 16_384

_UNKNOWN_IDLE_S = 4.0
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_HEADER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_SIZE_BEGUN = re.compile(rb"(?:[0-9A-Fa-f]{1,15}[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?\r?)?")
_SECONDS = re.compile(rb"timeout\s*=\s*([0-9]{1,6})", re.IGNORECASE)
_REQUESTS = re.compile(rb"max\s*=\s*([0-9]{1,9})", re.IGNORECASE)


class MalformedResponse(Exception):
    """The engine sent what is not an HTTP/1.1 response."""


class Head:
    """The status line and the headers that matter. `length` is None where the body is chunked or ends with the
    connection; `idle_s` and `requests` are what the engine says about keeping the connection (0: nothing said)."""

    __slots__ = ("chunked", "content_type", "idle_s", "keep_alive", "length", "requests", "retry_s", "status")

    def __init__(self, block: bytes) -> None:
        lines = block.split(b"\r\n")
        status = _STATUS.fullmatch(lines[0])
        if status is None:
            raise MalformedResponse(f"status line {lines[0][:80]!r}")
        self.status = int(status[2])
        self.keep_alive = status[1] == b"1"
        self.length: int | None = None
        self.chunked = False
        self.content_type = b""
        self.idle_s = _UNKNOWN_IDLE_S
        self.requests = 0
        #: Seconds after which to try again, where it says so in seconds.
        self.retry_s: int | None = None
        for line in lines[1:]:
            header = _HEADER.fullmatch(line)
            if header is None:
                raise MalformedResponse(f"header line {line[:80]!r}")
            name, value = header[1].lower(), header[2].rstrip(b" \t")
            if name in _TAKEN:
                self._take(name, value)
        if self.chunked and self.length is not None:
            raise MalformedResponse("both Content-Length and Transfer-Encoding")
        if self.status in (204, 304) or self.status < 200:
            self.length, self.chunked = 0, False

    def _take(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            if not value.isdigit() or len(value) > 15 or self.length is not None:
                raise MalformedResponse(f"Content-Length {value[:80]!r}")
            self.length = int(value)
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked" or self.chunked:
                raise MalformedResponse(f"Transfer-Encoding {value[:80]!r}")
            self.chunked = True
        elif name == b"content-type":
            self.content_type = value
        elif name == b"connection":
            options = value.lower()
            if b"close" in options:
                self.keep_alive = False
            elif b"keep-alive" in options:
                self.keep_alive = True
        elif name == b"retry-after":
            if value.isdigit() and len(value) < 6:
                self.retry_s = int(value)
        else:
            if seconds := _SECONDS.search(value):
                self.idle_s = float(seconds[1])
            if requests := _REQUESTS.search(value):
                self.requests = int(requests[1])


_TAKEN = frozenset(
    (b"content-length", b"transfer-encoding", b"content-type", b"connection", b"keep-alive", b"retry-after")
)


class Sink(Protocol):
    """Who a response is for. `on_data` gets the body in order, in pieces as they come."""

    def on_head(self, head: Head) -> None: ...

    def on_data(self, data: bytes) -> None: ...


class _Part(IntEnum):
    HEAD = 0
    LENGTH = 1
    SIZE = 2
    CHUNK = 3
    CHUNK_END = 4
    TRAILER = 5
    UNTIL_EOF = 6
    DONE = 7


# Plain integers: the loop over the chunks compares them for every piece of every stream.
_HEAD, _LENGTH, _SIZE_LINE, _CHUNK, _CHUNK_END, _TRAILER, _UNTIL_EOF, _DONE = (int(part) for part in _Part)

# An engine's streams have one head and few sizes: parsed strictly once, then looked up. Bounded.
_heads: dict[bytes, Head] = {}
_sizes: dict[bytes, int] = {}
_CACHE_LIMIT = 1_024
_REMEMBERED_HEAD = 2_048


class ResponseParser:
    """Reads one response after another; `start` begins each. After MalformedResponse it must not be fed again."""

    __slots__ = ("_held", "_left", "_part", "_seen", "_sink", "head", "overrun", "stopped")

    def __init__(self) -> None:
        self._sink: Sink | None = None
        self._part = _DONE
        self._held = b""
        self._left = 0
        self._seen = 0
        self.head: Head | None = None
        #: Whether bytes came after the end: the response stands, the connection cannot be used again.
        self.overrun = False
        self.stopped = False

    def start(self, sink: Sink) -> None:
        """Expect a response for `sink`."""
        self._sink = sink
        self._part = _HEAD
        self._held = b""
        self.head = None
        self.stopped = False

    def stop(self) -> None:
        """The sink wants no more; may be called from within its own methods."""
        self.stopped = True

    @property
    def done(self) -> bool:
        """Whether the response is complete."""
        return self._part == _DONE

    def feed(self, data: bytes) -> None:
        """Take what came from the engine.

        Raises:
            MalformedResponse: it is not a response, or is over a limit.
        """
        if self._held:
            data = self._held + data
            self._held = b""
        at = 0
        while self._part == _HEAD:
            end = data.find(b"\r\n\r\n", at)
            if end < 0 or end - at > HEAD_LIMIT:
                if len(data) - at > HEAD_LIMIT:
                    raise MalformedResponse(f"its headers are over {HEAD_LIMIT} bytes")
                self._held = data[at:]
                self._refuse_early(self._held)
                return
            self._take_head(data[at:end])
            at = end + 4
        if self.stopped:
            return
        if self._part == _SIZE_LINE or _CHUNK <= self._part <= _TRAILER:
            self._take_chunks(data, at)
        elif at < len(data):
            self._take_plain(data[at:] if at else data)

    def eof(self) -> None:
        """The engine closed its side.

        Raises:
            MalformedResponse: the response is not complete.
        """
        if self._part == _UNTIL_EOF:
            self._part = _DONE
        elif self._part != _DONE:
            raise MalformedResponse("it ended in the middle of a response")

    def _refuse_early(self, begun: bytes) -> None:
        """What cannot become a response is refused at once; waiting for the rest of it could take for ever."""
        if not (begun.startswith(b"HTTP/1.") or b"HTTP/1.".startswith(begun[:7])):
            raise MalformedResponse(f"status line {begun[:80]!r}")

    def _take_head(self, block: bytes) -> None:
        head = _heads.get(block)
        if head is None:
            head = Head(block)
            if len(_heads) >= _CACHE_LIMIT:
                _heads.clear()
            if len(block) <= _REMEMBERED_HEAD:
                _heads[block] = head
        if head.status < 200:
            if head.status == 101:
                raise MalformedResponse("it wants to change the protocol")
            return  # an interim response; the real one follows
        self.head = head
        if head.chunked:
            self._part, self._seen = _SIZE_LINE, 0
        elif head.length is None:
            self._part = _UNTIL_EOF
        else:
            self._left = head.length
            self._part = _LENGTH if head.length else _DONE
        assert self._sink is not None
        self._sink.on_head(head)

    def _take_plain(self, data: bytes) -> None:
        if self._part == _DONE:
            self.overrun = True
            return
        if self._part == _LENGTH:
            if len(data) > self._left:
                self.overrun = True
                data = data[: self._left]
            self._left -= len(data)
            if not self._left:
                self._part = _DONE
        assert self._sink is not None
        self._sink.on_data(data)

    def _take_chunks(self, data: bytes, at: int) -> None:
        """Take the framing off; what one read brought goes to the sink in one piece, also when an error follows."""
        pieces: list[bytes] = []
        try:
            self._unframe(data, at, pieces)
        finally:
            if pieces:
                assert self._sink is not None
                self._sink.on_data(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def _unframe(self, data: bytes, at: int, pieces: list[bytes]) -> None:
        part, left, end = self._part, self._left, len(data)
        while at < end:
            if part == _SIZE_LINE:
                stop = data.find(b"\r\n", at, at + LINE_LIMIT)
                if stop < 0:
                    if end - at >= LINE_LIMIT:
                        raise MalformedResponse(f"the size of a chunk is over {LINE_LIMIT} bytes")
                    self._held = data[at:]
                    if _SIZE_BEGUN.fullmatch(self._held) is None:
                        raise MalformedResponse(f"the size of a chunk is {self._held[:80]!r}")
                    break
                line = data[at:stop]
                left = _sizes.get(line, -1)
                if left < 0:
                    left = _chunk_size(line)
                at = stop + 2
                part = _CHUNK if left else _TRAILER
            elif part == _CHUNK:
                piece = data[at : at + left]
                at += len(piece)
                left -= len(piece)
                pieces.append(piece)
                if not left:
                    part = _CHUNK_END
            elif part == _CHUNK_END:
                if data.startswith(b"\r\n", at):
                    at += 2
                    part = _SIZE_LINE
                elif end - at == 1 and data.endswith(b"\r"):
                    self._held = b"\r"
                    break
                else:
                    raise MalformedResponse("a chunk is longer than its size")
            elif part == _TRAILER:
                stop = data.find(b"\r\n", at)
                self._seen += (stop + 2 if stop >= 0 else end) - at
                if self._seen > TRAILER_LIMIT:
                    raise MalformedResponse(f"its trailers are over {TRAILER_LIMIT} bytes")
                if stop < 0:
                    self._seen -= end - at
                    self._held = data[at:]
                    break
                if stop == at:
                    part = _DONE
                elif _HEADER.fullmatch(data[at:stop]) is None:
                    raise MalformedResponse(f"trailer {data[at:stop][:80]!r}")
                at = stop + 2
            else:
                self.overrun = True
                break
        self._part, self._left = part, left


def _chunk_size(line: bytes) -> int:
    match = _SIZE.fullmatch(line)
    if match is None:
        raise MalformedResponse(f"the size of a chunk is {line[:80]!r}")
    size = int(match[1], 16)
    if len(_sizes) >= _CACHE_LIMIT:
        _sizes.clear()
    _sizes[line] = size
    return size
