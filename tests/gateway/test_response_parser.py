"""However the bytes of a response are cut, the result is the same; what is no response is an error, never a hang."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressroom.gateway._response import HEAD_LIMIT, LINE_LIMIT, TRAILER_LIMIT, Head, MalformedResponse, ResponseParser

TRAP = b"Keep-Alive: timeout=5, max=100"


class Kept:
    def __init__(self) -> None:
        self.head: Head | None = None
        self.body = b""

    def on_head(self, head: Head) -> None:
        assert self.head is None
        self.head = head

    def on_data(self, data: bytes) -> None:
        assert data and self.head is not None
        self.body += data


def read(*pieces: bytes, eof: bool = False) -> tuple[str, int, bytes]:
    """('done', 'open' or 'error', status, body) after these pieces."""
    kept, parser = Kept(), ResponseParser()
    parser.start(kept)
    state = "open"
    try:
        for piece in pieces:
            parser.feed(piece)
        if eof:
            parser.eof()
        state = "done" if parser.done else "open"
    except MalformedResponse:
        state = "error"
    return state, kept.head.status if kept.head else 0, kept.body


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({place % (len(data) + 1) for place in at} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places) if a < b]


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A valid response and its body."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=6))
    body = b"".join(pieces)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n"]))
    if draw(st.booleans()):
        return interim + head + b"Content-Length: %d\r\n%b\r\n\r\n%b" % (len(body), TRAP, body), body
    framed = b""
    for piece in pieces:
        size = b"%x" % len(piece) if draw(st.booleans()) else b"00%X" % len(piece)
        framed += size + draw(st.sampled_from([b"", b" ;a=b", b';name="v v"'])) + b"\r\n" + piece + b"\r\n"
    trailers = draw(st.sampled_from([b"", b"X-One: 1\r\n", b"A: \r\nB: 0\r\n"]))
    return interim + head + b"Transfer-Encoding: chunked\r\n%b\r\n\r\n%b0\r\n%b\r\n" % (TRAP, framed, trailers), body


@given(responses(), st.lists(st.integers(0, 2000), max_size=12))
def test_any_cut_of_a_response_gives_the_same(response: tuple[bytes, bytes], at: list[int]) -> None:
    data, body = response
    assert read(*cut(data, at)) == ("done", 200, body)
    assert read(*(data[n : n + 1] for n in range(len(data)))) == ("done", 200, body)
    assert read(data[:-1], eof=True)[0] == "error"


@given(responses(), st.lists(st.integers(0, 2000), max_size=6), st.integers(0, 2000), st.integers(0, 255))
def test_any_cut_of_an_altered_response_gives_the_same(
    response: tuple[bytes, bytes], at: list[int], place: int, byte: int
) -> None:
    data = bytearray(response[0])
    data[place % len(data)] = byte
    whole, pieces = read(bytes(data)), read(*cut(bytes(data), at))
    assert whole[0] == pieces[0]
    if whole[0] != "error":
        assert whole == pieces


def test_garbage_is_an_error_at_once() -> None:
    dice = random.Random(5)
    for _ in range(2_000):
        data = dice.randbytes(dice.randint(8, 300))
        if not data.startswith(b"HTTP/1."):
            assert read(data)[0] == "error"
        assert read(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz" + data)[0] == "error"


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1_0\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nno trailer\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * HEAD_LIMIT,
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * HEAD_LIMIT + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;" + b"a" * LINE_LIMIT,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * TRAILER_LIMIT,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: a\r\n" * (TRAILER_LIMIT // 6 + 1),
    ],
)
def test_what_is_not_http_is_refused(data: bytes) -> None:
    assert read(data)[0] == "error"
    assert read(*(data[n : n + 97] for n in range(0, len(data), 97)))[0] == "error"


def test_the_header_block_that_ends_like_an_empty_chunk() -> None:
    body = b'{"a":1}'
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n\r\n" % (len(body), TRAP)
    assert head.endswith(b"0\r\n\r\n")
    assert read(head) == ("open", 200, b"")
    assert read(head, body) == ("done", 200, body)


def test_a_body_may_end_with_the_connection() -> None:
    head = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n"
    assert read(head, b"abc", b"def") == ("open", 200, b"abcdef")
    assert read(head, b"abc", b"def", eof=True) == ("done", 200, b"abcdef")


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_some_statuses_have_no_body(status: bytes) -> None:
    assert read(b"HTTP/1.1 " + status + b"\r\nContent-Length: 5\r\n\r\n")[0] == "done"


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"]
)
def test_what_follows_the_end_is_noticed_and_not_delivered(framing: bytes) -> None:
    kept, parser = Kept(), ResponseParser()
    parser.start(kept)
    parser.feed(b"HTTP/1.1 200 OK\r\n" + framing + b"HTTP/1.1 200 OK\r\n")
    assert parser.done and parser.overrun and kept.body == b"abc"


@pytest.mark.parametrize(
    ("lines", "keep_alive", "idle_s", "requests"),
    [
        (b"", True, 4.0, 0),
        (TRAP, True, 5.0, 100),
        (b"Connection: close", False, 4.0, 0),
        (b"Connection: Keep-Alive\r\nKeep-Alive: max=7", True, 4.0, 7),
    ],
)
def test_what_it_says_about_the_connection(lines: bytes, keep_alive: bool, idle_s: float, requests: int) -> None:
    head = Head(b"HTTP/1.1 200 OK" + (b"\r\n" + lines if lines else b""))
    assert (head.keep_alive, head.idle_s, head.requests) == (keep_alive, idle_s, requests)


def test_a_sink_may_stop_within_its_head() -> None:
    parser = ResponseParser()

    class Leaves(Kept):
        def on_head(self, head: Head) -> None:
            parser.stop()

        def on_data(self, data: bytes) -> None:
            raise AssertionError("it wanted no more")

    parser.start(Leaves())
    parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
