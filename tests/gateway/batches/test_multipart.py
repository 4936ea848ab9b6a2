"""The parser of forms: the same whatever the pieces, and nothing but a refusal for what is none."""

from __future__ import annotations

import itertools
import random
import re
from email.message import Message

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pressroom.gateway.batches._multipart import Multipart, Part, boundary_of
from pressroom.gateway.batches.base import BatchError

BOUNDARY = b"x-0Y"


class Taken:
    """Keeps what comes."""

    def __init__(self) -> None:
        self.parts: list[tuple[Part, bytes]] = []
        self.open = False

    def part_begins(self, part: Part) -> None:
        assert not self.open
        self.open = True
        self.parts.append((part, b""))

    def part_data(self, data: bytes) -> None:
        assert self.open and data
        part, before = self.parts[-1]
        self.parts[-1] = (part, before + data)

    def part_ends(self) -> None:
        assert self.open
        self.open = False


def parsed(body: bytes, *cuts: int) -> list[tuple[Part, bytes]]:
    taken = Taken()
    form = Multipart(BOUNDARY, taken)
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    for begin, end in itertools.pairwise(places):
        form.feed(body[begin:end])
    form.finish()
    assert not taken.open
    return taken.parts


def made(parts: list[tuple[str, bytes]]) -> bytes:
    return (
        b"".join(
            b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (BOUNDARY, name.encode(), data)
            for name, data in parts
        )
        + b"--%b--\r\n" % BOUNDARY
    )


# Data that is full of what delimiters are made of.
DATA = st.lists(st.sampled_from([b"\r\n", b"--", b"\r", b"\n", b"-", BOUNDARY, b"a", b"\r\n--x-0", b"\x00"])).map(
    b"".join
)


@given(st.lists(st.tuples(st.sampled_from(["a", "file", "ü"]), DATA), max_size=5), st.lists(st.integers(0, 500)))
@settings(max_examples=500)
def test_pieces_do_not_matter(parts: list[tuple[str, bytes]], cuts: list[int]) -> None:
    parts = [(name, data.replace(b"\r\n--" + BOUNDARY, b"")) for name, data in parts]
    parts = [
        (name, data if not (b"\r\n" + data + b"\r\n").count(b"\r\n--" + BOUNDARY) else b"") for name, data in parts
    ]
    body = made(parts) if parts else b"--%b--" % BOUNDARY
    assert [(part.name, data) for part, data in parsed(body, *cuts)] == parts


def test_one_byte_at_a_time() -> None:
    body = made([("purpose", b"batch"), ("file", b"\r\n--x-0\r\n" * 50), ("empty", b"")])
    assert parsed(body, *range(len(body))) == parsed(body)
    assert [part.name for part, _ in parsed(body)] == ["purpose", "file", "empty"]


PIECES = [
    b"--x-0Y", b"--x-0Y--", b"\r\n", b"\n", b"--", b"Content-Disposition: form-data", b'; name="a"', b"; name=a",
    b'; filename="b"', b"; filename*=utf-8''%ff%00", b": ", b"\x00", b"\xff\xfe", b"name", b'"', b"\\", b";", b"=",
    b"Content-Transfer-Encoding: base64", b"a" * 9_000, b"\r\n\r\n",
]  # fmt: skip


def refused_or_whole(body: bytes, cut: int) -> bool:
    """Whether it was refused, as it should be; the error is for people, and not as long as what it is about."""
    try:
        found = parsed(body, cut)
    except BatchError as error:
        assert error.status == 400 and error.message
        assert len(error.message) < 1_000
        return True
    assert b"--x-0Y--" in body  # nothing without an end is a form
    assert len(found) <= body.count(b"--x-0Y")
    return False


@given(st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)), st.integers())
@settings(max_examples=500)
def test_malformed_bodies(body: bytes, cut: int) -> None:
    refused_or_whole(body, cut)


def test_ten_thousand_malformed_bodies() -> None:
    """Many more than a search for the smallest example would have time for."""
    chance = random.Random(4)
    refused = 0
    for _ in range(10_000):
        if chance.random() < 0.5:
            body = b"".join(chance.choices(PIECES, k=chance.randrange(12)))
        else:
            body = bytearray(made([("purpose", b"batch"), ("file", b"some bytes")]))
            for _ in range(chance.randrange(1, 6)):
                body[chance.randrange(len(body))] = chance.randrange(256)
        refused += refused_or_whole(bytes(body), chance.randrange(500))
    assert 5_000 < refused < 10_000


@given(st.integers(0, 10_000))
def test_a_body_that_was_cut_is_never_a_form(at: int) -> None:
    body = made([("purpose", b"batch"), ("file", b"some bytes")])
    whole = len(body) - 2  # the last line break may be missing
    with pytest.raises(BatchError):
        parsed(body[: at % whole])


def test_nothing_gathers() -> None:
    """However long a part is, what is kept of it is less than a delimiter; and a head or a preamble has a limit."""
    taken = Taken()
    taken.part_data = lambda data: None  # type: ignore[method-assign]
    form = Multipart(BOUNDARY, taken)
    form.feed(made([("file", b"")])[: -len(BOUNDARY) - 8])
    for _ in range(200):
        form.feed(b"\r\n--x-0" * 1_000)
        assert len(form._buffer) < 64
    for hostile in (b"y" * 10_000, b"--x-0Y\r\n" + b"a: b\r\n" * 2_000, b"--x-0Y" + b" " * 10_000):
        with pytest.raises(BatchError):
            Multipart(BOUNDARY, Taken()).feed(hostile)
    with pytest.raises(BatchError, match="more than 32 parts"):
        parsed(made([("a", b"")] * 33))


@pytest.mark.parametrize(
    ("header", "name", "filename"),
    [
        ('form-data; name="file"; filename="a b.txt"', "file", "a b.txt"),
        ("form-data; name=file; filename=a.txt", "file", "a.txt"),
        (r'form-data; name="file"; filename="a \"b\" \\ c"', "file", r'a "b" \ c'),
        ('form-data; name="file"; filename="a%22b"', "file", 'a"b'),
        ("form-data; name=file; filename*=UTF-8''%e6%96%87", "file", "文"),
        ('FORM-DATA; NAME="file"; FILENAME="a;b=c"', "file", "a;b=c"),
        ('form-data; name="file"', "file", None),
    ],
)
def test_what_a_part_is_called(header: str, name: str, filename: str | None) -> None:
    body = f"--x-0Y\r\nContent-Disposition: {header}\r\n\r\n\r\n--x-0Y--".encode()
    assert parsed(body) == [(Part(name, filename), b"")]


@pytest.mark.parametrize("boundary", ["abc", "a b", "'()+_,-./:=?", "x" * 70, "----WebKitFormBoundary7MA4YWxkTrZu0gW"])
def test_boundaries(boundary: str) -> None:
    message = Message()
    message.add_header("Content-Type", "multipart/form-data", boundary=boundary)
    assert boundary_of(message["Content-Type"]) == boundary.encode()


@pytest.mark.parametrize("header", ["multipart/form-data", 'multipart/form-data; boundary=""', "text/plain", ""])
def test_headers_without_a_boundary(header: str) -> None:
    with pytest.raises(BatchError):
        boundary_of(header)


def test_a_boundary_too_long_or_with_other_signs() -> None:
    for boundary in ("x" * 71, "a\tb", "ü", "a "):
        with pytest.raises(BatchError, match=re.escape("boundary")):
            boundary_of(f'multipart/form-data; boundary="{boundary}"')
