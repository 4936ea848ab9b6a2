"""LZ4 frames and xorbs: what others pack is unpacked, what is damaged is refused, whoever decodes."""

from __future__ import annotations

import random
import struct
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressroom.registry.hub import _lz4
from pressroom.registry.hub._lz4 import Lz4Error, decompress_frame
from pressroom.registry.hub._xorbs import Xorb, read_chunk, shard_files
from pressroom.registry.hub.base import HubError

DECODERS = [pytest.param(False, id="python"), *([pytest.param(True, id="liblz4")] if _lz4._native() else [])]


def packed(data: bytes) -> bytes:
    """By Arrow's LZ4, which is the library everybody uses."""
    return bytes(pa.compress(data, codec="lz4", asbytes=True))


def samples() -> list[bytes]:
    chance = random.Random(5)
    return [
        b"x",
        b"word after word " * 500,
        bytes(100_000),
        chance.randbytes(70_000),
        b"".join(bytes([chance.randrange(4)]) * chance.randrange(1, 400) for _ in range(900)),
        (chance.randbytes(900) * 140)[:131_072],
    ]


@pytest.mark.parametrize("native", DECODERS)
@pytest.mark.parametrize("number", range(6))
def test_frames_of_others(native: bool, number: int) -> None:
    data = samples()[number]
    assert decompress_frame(packed(data), len(data), native=native) == data
    for wrong in (len(data) - 1, len(data) + 1):
        with pytest.raises(Lz4Error):
            decompress_frame(packed(data), wrong, native=native)


@pytest.mark.parametrize("native", DECODERS)
@given(st.data())
def test_damaged_frames_are_refused_or_have_their_length(native: bool, data: st.DataObject) -> None:
    good = bytearray(packed(samples()[data.draw(st.sampled_from([0, 1, 4]))]))
    for _ in range(data.draw(st.integers(0, 6))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    size = data.draw(st.integers(0, 200_000))
    with suppress(Lz4Error):
        assert len(decompress_frame(bytes(good[:cut]), size, native=native)) == size


@given(st.binary(max_size=400))
def test_any_block_is_decoded_within_its_bounds_or_refused(block: bytes) -> None:
    out = bytearray(300)
    with suppress(Lz4Error, IndexError):
        _lz4._decode(block, out, 100, 50)
    assert out[:100] == bytes(100) and len(out) == 300


def chunk(data: bytes, scheme: int, raw: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(3, "little") + bytes([scheme]) + len(raw).to_bytes(3, "little") + data


def test_a_xorb_of_every_kind_of_chunk(tmp_path: Path) -> None:
    raw = [b"plain bytes", b"word after word " * 300, bytes(range(256)) * 40 + b"abc"]
    groups = b"".join(raw[2][place::4] for place in range(4))
    body = chunk(raw[0], 0, raw[0]) + chunk(packed(raw[1]), 1, raw[1]) + chunk(packed(groups), 2, raw[2])
    path = tmp_path / "xorb"
    path.write_bytes(body + b"XETBLOB" + bytes(50))
    xorb = Xorb.read(path)
    assert list(xorb.lengths) == [len(each) for each in raw]
    with path.open("rb") as file:
        assert [read_chunk(file.fileno(), start) for start in xorb.starts] == raw


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"XETBLOB" + bytes(20),
        b"\0\5\0\0\0\5\0",
        chunk(b"abc", 0, b"abc")[:-1],
        chunk(b"abc", 7, b"abc"),
        b"\1" + chunk(b"abc", 0, b"abc")[1:],
        chunk(b"abc", 0, b""),
        chunk(b"abc", 0, bytes(200_000)),
    ],
)
def test_what_is_no_xorb(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "xorb"
    path.write_bytes(body)
    with pytest.raises(HubError):
        Xorb.read(path)


def test_a_chunk_that_lies(tmp_path: Path) -> None:
    path = tmp_path / "xorb"
    for body in (chunk(b"abc", 0, b"abcd"), chunk(b"abc", 1, b"abcd"), chunk(packed(b"abc"), 1, b"abcd")):
        path.write_bytes(body)
        with path.open("rb") as file, pytest.raises(HubError):
            read_chunk(file.fileno(), 0)


@given(st.binary(max_size=600))
def test_what_is_no_shard(data: bytes) -> None:
    from pressroom.registry.hub._xorbs import _SHARD_TAG

    for body in (data, _SHARD_TAG + bytes(16) + data):
        with suppress(HubError):
            list(shard_files(body))


def test_a_shard_that_says_too_much() -> None:
    from pressroom.registry.hub._xorbs import _SHARD_TAG

    head = _SHARD_TAG + struct.pack("<QQ", 2, 0)
    entry = struct.pack("<4Q4I", 1, 2, 3, 4, 1 << 30, 0xFFFFFFFF, 0, 1)
    with pytest.raises(HubError, match="cut short"):
        list(shard_files(head + entry * 3))
