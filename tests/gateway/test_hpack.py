"""Headers of HTTP/2, against the encoder of another library, and against what nobody's encoder makes."""

from __future__ import annotations

import contextlib

import pytest
from hpack import Encoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.table import HeaderTable
from hypothesis import given, settings
from hypothesis import strategies as st

from pressroom.gateway.grpc._hpack import STATIC, TABLE_BYTES, Decoder, HpackError, literal
from pressroom.gateway.grpc._huffman import HuffmanError, codes, decode

NAMES = st.sampled_from([b":path", b"te", b"grpc-timeout", b"x-custom", b"user-agent"]) | st.binary(max_size=40)
HEADERS = st.lists(st.tuples(NAMES, st.binary(max_size=200)), max_size=12)
MUCH = 1 << 20


def test_the_tables_are_the_published_ones() -> None:
    assert list(zip(REQUEST_CODES, REQUEST_CODES_LENGTH, strict=True)) == codes()
    assert tuple(STATIC) == HeaderTable.STATIC_TABLE


@given(st.lists(st.tuples(HEADERS, st.booleans(), st.none() | st.integers(0, TABLE_BYTES)), max_size=12))
@settings(max_examples=300, deadline=None)
def test_blocks_of_one_connection(blocks: list[tuple[list[tuple[bytes, bytes]], bool, int | None]]) -> None:
    encoder, decoder = Encoder(), Decoder()
    for headers, huffman, table in blocks:
        if table is not None:
            encoder.header_table_size = table
        assert decoder.decode(encoder.encode(headers, huffman=huffman), MUCH) == headers


@given(HEADERS)
def test_what_is_written_is_read(headers: list[tuple[bytes, bytes]]) -> None:
    assert Decoder().decode(b"".join(literal(*each) for each in headers), MUCH) == headers
    assert Decoder().decode(literal(b"n" * 127, b"v" * 70_000), MUCH) == [(b"n" * 127, b"v" * 70_000)]


def test_equal_blocks_are_equal_headers_while_the_table_is_the_same() -> None:
    encoder, decoder = Encoder(), Decoder()
    headers = [(b":path", b"/service/method"), (b"te", b"trailers")]
    decoder.decode(encoder.encode(headers), MUCH)
    block, changes = encoder.encode(headers), decoder.changes
    assert decoder.decode(block, MUCH) == decoder.decode(block, MUCH) == headers
    assert decoder.changes == changes
    decoder.decode(encoder.encode([(b"another", b"one")]), MUCH)
    assert decoder.changes > changes


def test_headers_over_the_limit_leave_the_table_right() -> None:
    encoder, decoder = Encoder(), Decoder()
    large = [(b"a", b"x" * 3_000), (b"b", b"y" * 500)]
    assert decoder.decode(encoder.encode(large), 1_000) is None
    assert decoder.decode(encoder.encode(large), MUCH) == large


def test_references_without_end_take_no_room() -> None:
    """A header of 4 kB in the table, referred to by one byte a hundred thousand times."""
    decoder = Decoder()
    decoder.decode(b"\x40\x01a" + literal(b"", b"x" * 4_000)[2:], MUCH)
    assert decoder.decode(b"\xbe" * 100_000, 16_384) is None


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # index 0
        b"\xff\x80\x80\x80\x80\x80\x80\x01",  # a number without end
        b"\xff\xff\xff\xff\xff\x0f",
        b"\xbe",  # after the static table there is nothing yet
        b"\x40\x05abc",  # a string that is cut
        b"\x40",
        b"\x00\x7f",
        b"\x3f\xe2\x1f",  # a table larger than was offered
        b"\x82\x20",  # the size of the table in the middle of a block
        b"\x00\x84\xff\xff\xff\xff\x00",  # the end of the string within one
        b"\x00\x85\x07\xff\xff\xff\xff\x00",  # and where it ends in the middle of a byte
        b"\x00\x81\x00\x00",  # padding that is no padding
        b"\x00\x82\x1f\xff\x00",  # more than seven bits of it
    ],
)
def test_what_does_not_decode(block: bytes) -> None:
    with pytest.raises(HpackError):
        Decoder().decode(block, MUCH)


@given(st.binary(max_size=300))
@settings(max_examples=500, deadline=None)
def test_any_bytes(data: bytes) -> None:
    decoder = Decoder()
    with contextlib.suppress(HpackError):
        decoder.decode(data, MUCH)
    with contextlib.suppress(HuffmanError):
        assert len(decode(data)) <= len(data) * 8 // 5
