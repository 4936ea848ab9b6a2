"""Whole numbers of any width, NF4, and scales that are rounded themselves: what GGUF has no type for."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pressroom.compress.numbers import Coded, NumberFormat, Uniform, double_quantised, number_format
from pressroom.compress.numbers._tables import NORMAL_LEVELS
from pressroom.compress.rounding import rounded
from pressroom.kernel import RecipeError
from tests.compress.rounding.layers import layer

from .weights import OTHERS, awkward, awkward_importance, importances, loss, losses, weights

UNIFORM = [form for form in OTHERS if isinstance(form, Uniform)]


def plainly(form: Uniform, rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Block by block, the scale from the weights that lie farthest out."""
    values = np.empty(rows.shape)
    for row in range(len(rows)):
        for start in range(0, rows.shape[1], form.block):
            x = rows[row, start : start + form.block].astype(np.float64)
            if form.symmetric:
                scale, zero = np.abs(x).max() / form.highest, 0
            else:
                scale = (max(x.max(), 0) - min(x.min(), 0)) / form.highest
                zero = np.clip(np.rint(-min(x.min(), 0) / scale), 0, form.highest) if scale else 0
            scale = float(np.float16(min(scale, 65504.0)))
            q = np.clip(np.rint(x / scale), form.lowest - zero, form.highest - zero) if scale else 0 * x
            values[row, start : start + form.block] = q * scale
    return values


@pytest.mark.parametrize("form", UNIFORM, ids=lambda form: form.name)
@given(data=st.data())
@settings(max_examples=8)
def test_never_worse_than_plain_rounding(form: Uniform, data: st.DataObject) -> None:
    rows = data.draw(awkward(form.block))
    importance = data.draw(awkward_importance(form.block))
    values = form.decode(form.encode(rows, importance))
    assert np.isfinite(values).all()
    each = None
    if importance is not None:
        most = float(importance.max())
        each = importance / most if most > 0 else np.ones_like(importance)
    ours, theirs = losses(rows, values, each, form.block), losses(rows, plainly(form, rows), each, form.block)
    blind = 1e-6 * (rows.astype(np.float64) ** 2).reshape(len(rows), -1, form.block).max(axis=2) * form.block
    assert (ours <= theirs * 1.001 + blind * 1e-3).all()


@pytest.mark.parametrize("form", [form for form in OTHERS if form.name != "nf4"], ids=lambda form: form.name)
def test_taken_apart_a_value_is_code_less_zero_times_scale(form: Uniform) -> None:
    rows = weights(6, 4 * form.block, seed=2)
    data = form.encode(rows, importances(4 * form.block))
    coded = form.coded(data)
    assert coded.codes.dtype == (np.int8 if form.symmetric else np.uint8)
    assert form.lowest <= coded.codes.min() and coded.codes.max() <= form.highest
    assert (coded.scales > 0).all() and coded.scales.shape == (6, 4)
    zeros = 0 if coded.zeros is None else np.repeat(coded.zeros.astype(np.float64), form.block, axis=1)
    values = (coded.codes - zeros) * np.repeat(coded.scales.astype(np.float64), form.block, axis=1)
    assert np.array_equal(values.astype(np.float32), form.decode(data))
    assert np.array_equal(form.data_of(coded), data)


def test_names_of_the_family() -> None:
    form = number_format("INT4-G64-asym")
    assert isinstance(form, Uniform)
    assert (form.name, form.block, form.bits, form.ggml) == ("int4-g64-asym", 64, 8 * 35 / 64, None)
    assert form == Uniform(4, symmetric=False, group=64) != number_format("int4-g64")
    assert number_format("t2-g128").bits == 2.125
    assert number_format("int3-g32").nbytes == 2 + 12
    for name in ("int4-g65", "int9-g64", "int1-g64", "t2-g128-asym", "int4-row", "int4-g0", "int4-g99999999", "int4-"):
        with pytest.raises(RecipeError) as caught:
            number_format(name)
        assert "int" in caught.value.hint
    with pytest.raises(RecipeError, match="9 bits"):
        Uniform(9)
    with pytest.raises(RecipeError, match="groups of 12"):
        Uniform(4, group=12)
    with pytest.raises(RecipeError, match="'row'"):
        Uniform(4, group="row")


@pytest.mark.parametrize("name", ["int8-channel", "int4-tensor", "int4-tensor-asym", "t2-tensor"])
def test_one_scale_for_more_than_a_block_is_bound_first(name: str) -> None:
    form, rows = number_format(name), weights(20, 48)
    assert form.fits(48) and not form.fits(44)
    for refused in (
        lambda: form.encode(rows),
        lambda: form.grid(rows),
        lambda: form.decode(np.zeros((1, 9), np.uint8)),
    ):
        with pytest.raises(RecipeError, match="whole") as caught:
            refused()
        assert "bound" in caught.value.hint
    with pytest.raises(RecipeError, match="rows of 44"):
        form.bound(rows[:, :44])
    bound = form.bound(rows)
    assert bound.block == 48 and bound.bound(rows) == bound
    assert bound.decode(bound.encode(rows)).shape == rows.shape


@pytest.mark.parametrize("name", ["int8-tensor", "int4-tensor", "int3-tensor-asym", "int4-tensor-asym", "t2-tensor"])
@pytest.mark.parametrize("weighed", [False, True], ids=["alike", "weighed"])
def test_a_matrix_with_one_scale(name: str, weighed: bool) -> None:
    """No worse than the scale from the largest weight, or than any of a hundred others."""
    rows = weights(40, 64, seed=5)
    importance = importances(64) if weighed else None
    form = number_format(name).bound(rows, importance)
    assert isinstance(form, Uniform) and form.scale is not None
    coded = form.coded(form.encode(rows, importance))
    assert coded.scales.shape == (1, 1) and 8 * form.nbytes == form.code_bits * 64
    ours = loss(rows, form.decode(form.encode(rows, importance)), importance)
    span = float(np.abs(rows).max()) / form.highest if form.symmetric else float(np.ptp(rows)) / form.highest
    for share in np.geomspace(0.05, 1, 100):
        scale = span * share
        zero = 0.0 if form.symmetric else np.clip(np.rint(-rows.min() * share / scale), 0, form.highest)
        q = np.clip(np.rint(rows / scale), form.lowest - zero, form.highest - zero)
        assert ours <= 1.002 * loss(rows, (q * scale).astype(np.float32), importance)


def test_a_matrix_of_zeros_has_a_scale_too() -> None:
    rows = np.zeros((3, 16), np.float32)
    for name in ("int4-tensor", "int4-tensor-asym", "int4-channel", "int4-channel-asym", "t2-tensor"):
        form = number_format(name).bound(rows)
        assert not form.decode(form.encode(rows)).any()


@pytest.mark.parametrize(
    "name", ["nf4", "int4-g64", "int4-g32-asym", "int3-g32", "int4-channel", "int4-tensor", "t2-g64"]
)
def test_gptq_rounds_to_them(name: str) -> None:
    """With what enters the layer in mind less is lost, and the bytes hold what was said."""
    given_, hessian = layer(48, 128, seed=3)
    form = number_format(name).bound(given_)
    found = rounded(given_, hessian, form)
    assert found.error < 0.97 * found.nearest and not found.fallback
    assert np.array_equal(form.decode(found.data), found.values)


def test_nf4_levels_are_shares_of_a_normal_distribution() -> None:
    """Derived as in the paper: the middle of even shares of each side, the outermost at 1."""
    outermost = 0.9677083
    inverse = NormalDist().inv_cdf
    above = [inverse(share) for share in np.linspace(outermost, 0.5, 9)[:-1]]
    below = [-inverse(share) for share in np.linspace(outermost, 0.5, 8)[:-1]]
    levels = np.sort([*above, *below, 0])
    assert np.array(NORMAL_LEVELS) == pytest.approx(levels / np.abs(levels).max(), abs=2e-7)


def test_nf4_is_no_worse_than_the_largest_weight_as_scale() -> None:
    form, rows = number_format("nf4"), weights(64, 768, seed=7)
    levels = np.array(NORMAL_LEVELS, np.float32)
    blocks = rows.reshape(-1, 64)
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    plain = levels[np.abs((blocks / largest)[:, :, None] - levels).argmin(axis=2)] * largest
    assert loss(rows, form.decode(form.encode(rows)), None) < 0.9 * loss(rows, plain.reshape(rows.shape), None)


def test_nf4_bytes_are_those_of_bitsandbytes() -> None:
    """The first weight in the upper half of a byte, codes in the order of the levels, scales of 32 bits."""
    form = number_format("nf4")
    codes = np.arange(64, dtype=np.uint8)[None] % 16
    data = form.data_of(Coded(codes=codes, scales=np.array([[0.3]], np.float32), zeros=None))  # type: ignore[attr-defined]
    assert data[0, :4].view(np.float32)[0] == np.float32(0.3)
    assert data[0, 4:8].tolist() == [0x01, 0x23, 0x45, 0x67]
    assert np.array_equal(form.decode(data)[0, :16], np.array(NORMAL_LEVELS, np.float32) * np.float32(0.3))


def test_double_quantised_scales() -> None:
    """Eight bits for a scale of 32: the map has 256 numbers, and next to nothing is lost."""
    rows = weights(96, 768, seed=1)
    form: NumberFormat = number_format("nf4")
    data = form.encode(rows)
    coded = form.coded(data)  # type: ignore[attr-defined]
    found = double_quantised(coded.scales)
    assert found.values.shape == coded.scales.shape and len(found.codes) == coded.scales.size
    assert len(found.absmax) == -(-coded.scales.size // 256)
    assert (np.diff(found.map) > 0).all() and len(found.map) == 256 and found.map[-1] == 1
    assert found.nbytes < 0.27 * coded.scales.nbytes
    # The widest gap of the map is 0.014 of the largest: half of it.
    spread = float(np.abs(coded.scales - found.offset).max())
    assert np.abs(found.values - coded.scales).max() <= 0.0071 * spread
    again = form.decode(form.data_of(Coded(codes=coded.codes, scales=found.values, zeros=None)))  # type: ignore[attr-defined]
    assert loss(rows, again, None) < 1.02 * loss(rows, form.decode(data), None)
    same = double_quantised(np.full((2, 3), 0.25, np.float32))
    assert np.array_equal(same.values, np.full((2, 3), 0.25, np.float32))
