"""The bits: what llama.cpp reads from them, where they are, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pressroom.compress.numbers import NumberFormat, Piece, formats, number_format
from pressroom.kernel import RecipeError
from pressroom.store.formats._ggml import TYPES

from . import llamacpp
from .weights import BLOCKS, FLOATS, GGUF, OTHERS, PLAIN, weights

every = pytest.mark.parametrize("form", GGUF, ids=lambda form: form.name)
every_block = pytest.mark.parametrize("form", BLOCKS, ids=lambda form: form.name)


def bits_of(numbers: NDArray[np.float32]) -> NDArray[np.uint32]:
    return numbers.view(np.uint32)


@every
def test_sizes_are_those_of_ggml(form: NumberFormat) -> None:
    assert form.ggml is not None
    known = TYPES[form.ggml]
    assert (known.name.lower(), known.elements, known.nbytes) == (form.name, form.block, form.nbytes)
    assert form.bits == 8 * form.nbytes / form.block


def test_names() -> None:
    assert number_format("Q4_0") is number_format("Q4_0") == number_format("q4_0") != number_format("q4_1")
    assert [form.bits for form in formats()] == sorted(form.bits for form in formats())
    assert {form.name for form in formats()} == {*PLAIN, "f32", "f16", "bf16", "nf4"}
    assert repr(number_format("q4_0")) == "<number format q4_0: 4.5 bits>"
    with pytest.raises(RecipeError, match="'q4_o'") as caught:
        number_format("q4_o")
    assert "q4_0" in caught.value.hint
    assert {form.name for form in formats()} <= set(caught.value.facts["known"])


@every
def test_fits(form: NumberFormat) -> None:
    assert form.fits(form.block) and form.fits(3 * form.block)
    assert not form.fits(0)
    assert form.block == 1 or not form.fits(form.block + 1)


@pytest.mark.parametrize("form", [form for form in GGUF if form.name != "f32"], ids=lambda form: form.name)
def test_decode_is_bit_for_bit_that_of_llamacpp(form: NumberFormat) -> None:
    """Any bytes: also scales that no encoder writes. What is not a number may differ in which one it is not."""
    data = np.random.default_rng(5).integers(0, 256, (400, form.nbytes * (4 if form.block > 1 else 160)), np.uint8)
    ours, theirs = form.decode(data), llamacpp.decoded(form, data)
    assert ours.dtype == np.float32
    same = (bits_of(ours) == bits_of(theirs)) | (np.isnan(ours) & np.isnan(theirs))
    assert same.all()
    assert np.isfinite(ours).mean() > 0.5


def test_f32_is_kept() -> None:
    form = number_format("f32")
    rows = weights(3, 5)
    data = form.encode(rows)
    assert data.tobytes() == rows.astype("<f4").tobytes()
    assert np.array_equal(bits_of(form.decode(data)), bits_of(rows))


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_floats_are_rounded_as_llamacpp_rounds_them(name: str) -> None:
    form = number_format(name)
    rows = np.random.default_rng(1).integers(0, 1 << 32, (64, 512), np.uint32).view(np.float32)
    largest = 65504 if name == "f16" else 3.3e38
    rows = np.where(np.isfinite(rows) & (np.abs(rows) < largest), rows, np.float32(-0.0))
    assert np.array_equal(form.encode(rows), llamacpp.encoded(form, rows))


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_floats_stay_finite(name: str) -> None:
    form = number_format(name)
    rows = np.array([[3.4028235e38, -3.4028235e38, 0.0, -0.0, 1e-45, -1e-45]], np.float32)
    values = form.decode(form.encode(rows))
    largest = 65504.0 if name == "f16" else 3.3895314e38
    assert values[0, :2].tolist() == pytest.approx([largest, -largest])
    assert np.array_equal(values[0, 2:], [0, 0, 0, 0])
    assert np.signbit(values[0, 2:]).tolist() == [False, True, False, True]


@pytest.mark.parametrize("form", [*GGUF, *OTHERS], ids=lambda form: form.name)
def test_the_layout_has_every_bit_once(form: NumberFormat) -> None:
    at = 0
    for piece in form.layout():
        assert piece.at == at and piece.bits > 0
        at += piece.bits
    assert at == 8 * form.nbytes
    codes = [item for piece in form.layout() if piece.field == "code" and not piece.low for item in piece.items]
    assert sorted(codes) == list(range(form.block))


def read(block: NDArray[np.uint8], piece: Piece) -> int:
    return int.from_bytes(block.tobytes(), "little") >> piece.at & ((1 << piece.bits) - 1)


@every_block
def test_a_block_can_be_read_with_the_layout_alone(form: NumberFormat) -> None:
    """Bit by bit, as the picture of the format says; then the arithmetic of the format, in words of one line."""
    how = PLAIN[form.name]
    data = form.encode(weights(2, form.block, seed=3))
    for block, values in zip(data, form.decode(data), strict=True):
        fields: dict[tuple[str, int], int] = {}
        for piece in form.layout():
            bits = read(block, piece)
            for digit, item in enumerate(piece.items):
                part = bits if len(piece.items) == 1 else bits * 3 ** (digit + 1) // 256 % 3
                fields[piece.field, item] = fields.get((piece.field, item), 0) | part << piece.low
        scale, low = (
            float(np.uint16(fields.get((field, 0), 0)).view(np.float16)) if (field, 0) in fields else None
            for field in ("scale", "min")
        )
        assert scale is not None
        for at, value in enumerate(values):
            sub = at * how.subs // form.block
            code = fields["code", at]
            level = how.levels[code] if form.name != "q8_0" else code - 256 * (code > 127)
            step = scale
            if how.subs > 1:
                count = fields["sub-scale", sub]
                if form.name == "q6_k":
                    count -= 256 if count > 127 else 0
                elif how.sub_levels[0]:
                    count += how.sub_levels[0]
                step *= count
            expected = level * step
            if low is not None:
                expected += low if how.subs == 1 else -low * fields["sub-min", sub]
            assert np.float32(expected) == value


@pytest.mark.parametrize("form", [*GGUF, *OTHERS], ids=lambda form: form.name)
def test_refused(form: NumberFormat) -> None:
    rows = weights(4, 2 * form.block + (form.block == 1) * 6)
    for bad in (np.nan, np.inf, -np.inf):
        broken = rows.copy()
        broken[2, 5] = bad
        with pytest.raises(RecipeError, match="row 2, column 5") as caught:
            form.encode(broken)
        assert (caught.value.facts["row"], caught.value.facts["column"]) == (2, 5)
    if form.block > 1:
        with pytest.raises(RecipeError, match=f"blocks of {form.block}") as caught:
            form.encode(rows[:, :-1])
        assert caught.value.facts["columns"] == 2 * form.block - 1
        with pytest.raises(RecipeError, match="shape"):
            form.decode(np.zeros((2, form.nbytes + 1), np.uint8))
        with pytest.raises(RecipeError, match="grid"):
            form.grid(rows)
    with pytest.raises(RecipeError, match="shape"):
        form.encode(rows[0])
    ones = np.ones(rows.shape[1], np.float32)
    with pytest.raises(RecipeError, match="importance"):
        form.encode(rows, ones[1:])
    for bad in (-1, np.nan, np.inf):
        ones[3] = bad
        with pytest.raises(RecipeError, match="importance of column 3"):
            form.encode(rows, ones)


@pytest.mark.parametrize("form", FLOATS, ids=lambda form: form.name)
def test_formats_without_blocks_have_no_grid(form: NumberFormat) -> None:
    with pytest.raises(RecipeError, match="no grid"):
        form.grid(weights(2, 1))


def test_far_down_a_tall_matrix() -> None:
    """Positions are those of the whole matrix, not of the piece that is looked at."""
    rows = np.zeros((40_000, 64), np.float32)
    rows[39_999, 63] = np.nan
    with pytest.raises(RecipeError, match="row 39999, column 63"):
        number_format("q4_0").encode(rows)
