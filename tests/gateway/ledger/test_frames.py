"""Records of the journal: what is written is read, and damage costs the records it touches and no others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pressroom.gateway.ledger import _frames
from pressroom.gateway.ledger._frames import DAMAGED, MOST, ROW, TORN, frame, records

PAYLOADS = st.lists(st.binary(min_size=1, max_size=300).map(lambda raw: raw.hex().encode()), max_size=20)


def read(data: bytes, start: int = 0) -> list[tuple[int, bytes, int]]:
    return list(records(lambda count, at: data[at : at + count], start, len(data)))


@given(PAYLOADS, st.integers(0, 5_000))
def test_what_is_written_is_read_and_zeros_are_the_end(payloads: list[bytes], zeros: int) -> None:
    data = b"".join(frame(ROW, payload) for payload in payloads) + bytes(zeros)
    found = read(data)
    assert [(kind, payload) for kind, payload, _ in found] == [(ROW, payload) for payload in payloads]
    for _, _, after in found:  # each place is one to go on from
        assert read(data, after) == found[len([f for f in found if f[2] <= after]) :]


@given(PAYLOADS.filter(len), st.data())
def test_one_altered_byte_costs_one_record(payloads: list[bytes], data: st.DataObject) -> None:
    frames = [frame(ROW, payload) for payload in payloads]
    which = data.draw(st.integers(0, len(frames) - 1))
    at = data.draw(st.integers(0, len(frames[which]) - 1))
    bit = data.draw(st.integers(0, 7))
    altered = bytearray(frames[which])
    altered[at] ^= 1 << bit
    whole = b"".join([*frames[:which], bytes(altered), *frames[which + 1 :]]) + bytes(100)
    found = read(whole)
    assert [p for kind, p, _ in found if kind == ROW] == payloads[:which] + payloads[which + 1 :]
    assert [kind for kind, _, _ in found if kind < 0] == [DAMAGED if which + 1 < len(frames) else TORN]


@given(PAYLOADS.filter(len), st.data())
def test_a_record_that_was_not_finished_is_dropped(payloads: list[bytes], data: st.DataObject) -> None:
    *whole, last = [frame(ROW, payload) for payload in payloads]
    cut = data.draw(st.integers(1, len(last) - 1))
    found = read(b"".join(whole) + last[:cut] + bytes(500))
    assert [p for kind, p, _ in found if kind == ROW] == payloads[:-1]
    assert [kind for kind, _, _ in found if kind < 0] == [TORN]


@given(st.binary(max_size=3_000))
def test_any_bytes_can_be_read(data: bytes) -> None:
    for kind, _, after in read(data):
        assert kind >= 0 or kind in (DAMAGED, TORN)
        assert 0 < after <= len(data)


def test_records_across_the_pieces_that_are_read() -> None:
    payloads = [b"%d" % number * (number % 300 + 1) for number in range(5_000)]
    payloads = [payload[: MOST - _frames.HEADER_BYTES] for payload in payloads]
    data = bytearray(b"".join(frame(ROW, payload) for payload in payloads))
    assert len(data) > 2 * _frames._CHUNK
    assert [payload for _, payload, _ in read(bytes(data))] == payloads
    hole = _frames._CHUNK - 700
    data[hole : hole + 1_400] = bytes(1_400)  # a page that a power cut left empty, over the end of a piece
    found = read(bytes(data))
    assert [kind for kind, _, _ in found if kind != ROW] == [DAMAGED]
    kept = [payload for kind, payload, _ in found if kind == ROW]
    assert len(payloads) - 6 <= len(kept) < len(payloads)
    assert set(kept) <= set(payloads)


def test_a_file_that_is_shorter_than_it_says() -> None:
    data = frame(ROW, b"1") + frame(ROW, b"2")
    found = list(records(lambda count, at: data[at : at + count], 0, 1 << 20))
    assert [payload for _, payload, _ in found] == [b"1", b"2"]
