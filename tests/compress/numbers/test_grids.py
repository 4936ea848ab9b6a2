"""Rounding one column of a block after the other, with the scales chosen before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pressroom.compress.numbers import NumberFormat

from .weights import BLOCKS, OTHERS, awkward, awkward_importance, importances, weights

every_block = pytest.mark.parametrize("form", [*BLOCKS, *OTHERS], ids=lambda form: form.name)


@every_block
@given(data=st.data())
@settings(max_examples=10)
def test_what_is_packed_is_what_was_said(form: NumberFormat, data: st.DataObject) -> None:
    """Any codes that the grid hands out for any weights, not only the nearest."""
    rows = data.draw(awkward(form.block))
    grid = form.grid(rows, data.draw(awkward_importance(form.block)))
    pushed = np.roll(rows, data.draw(st.integers(0, form.block)), axis=1) * np.float32(0.7)
    codes = np.stack([grid.nearest(np.ascontiguousarray(pushed[:, at]), at) for at in range(form.block)], axis=1)
    values = np.stack([grid.values(codes[:, at], at) for at in range(form.block)], axis=1)
    assert codes.dtype == np.uint8 and values.dtype == np.float32
    packed = grid.pack(codes)
    assert packed.shape == (len(rows), form.nbytes)
    assert np.array_equal(form.decode(packed).view(np.uint32), values.view(np.uint32))


@every_block
def test_each_code_is_a_value_and_nearest_finds_the_nearest(form: NumberFormat) -> None:
    rows = weights(16, form.block, seed=4)
    grid = form.grid(rows)
    count = len(np.unique(np.concatenate([grid.nearest(rows[:, at] * 1e6, at) for at in range(form.block)])))
    assert count <= 256
    for at in (0, 1, form.block // 2, form.block - 1):
        lowest, highest = (int(grid.nearest(np.full(16, end, np.float32), at).min()) for end in (-1e30, 1e30))
        first, last = min(lowest, highest), max(int(grid.nearest(np.full(16, 1e30, np.float32), at).max()), lowest)
        possible = np.stack(
            [grid.values(np.full(16, code, np.uint8), at) for code in range(first, last + 1)], axis=1
        ).astype(np.float64)
        values = np.random.default_rng(at).normal(0, 0.05, 16).astype(np.float32)
        found = grid.values(grid.nearest(values, at), at)
        best = np.abs(values[:, None] - possible).min(axis=1)
        assert np.abs(values - found) == pytest.approx(best, rel=1e-4, abs=1e-7)


@every_block
def test_a_grid_has_the_scales_of_encode(form: NumberFormat) -> None:
    rows, importance = weights(40, form.block, seed=6), importances(form.block)
    grid = form.grid(rows, importance)
    codes = np.stack([grid.nearest(rows[:, at], at) for at in range(form.block)], axis=1)
    assert np.array_equal(grid.pack(codes), form.encode(rows, importance))


@every_block
def test_a_grid_of_many_rows_and_of_none(form: NumberFormat) -> None:
    """More rows than are searched at once."""
    count = 3 * (1 << 18) // form.block // 2
    rows = weights(count, form.block)
    codes = np.zeros((count, form.block), np.uint8)
    tall = form.grid(rows).pack(codes)
    assert np.array_equal(tall[-3:], form.grid(rows[-3:]).pack(codes[-3:]))
    none = form.grid(rows[:0])
    assert none.nearest(rows[:0, 0], 0).shape == (0,)
    assert none.pack(codes[:0]).shape == (0, form.nbytes)
