"""How well encode rounds: against plain rounding, against llama.cpp's own, and on what is no ordinary weight."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pressroom.compress.numbers import NumberFormat, number_format

from . import llamacpp
from .weights import BLOCKS, OTHERS, awkward, awkward_importance, importances, loss, losses, plainly, weights

every_block = pytest.mark.parametrize("form", BLOCKS, ids=lambda form: form.name)
any_block = pytest.mark.parametrize("form", [*BLOCKS, *OTHERS], ids=lambda form: form.name)
# Those whose scales are counted in steps of another scale.
SUPER = {"q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs"}


@every_block
@given(data=st.data())
@settings(max_examples=25)
def test_never_worse_than_plain_rounding(form: NumberFormat, data: st.DataObject) -> None:
    """Each block by itself, whatever it holds; and what comes out can be read, and is finite."""
    rows = data.draw(awkward(2 * form.block))
    importance = data.draw(awkward_importance(2 * form.block))
    before = rows.copy()
    values = form.decode(form.encode(rows, importance))
    assert np.array_equal(rows, before)
    assert np.isfinite(values).all()
    plain = np.stack([plainly(form, block) for block in rows.reshape(-1, form.block)]).reshape(rows.shape)
    if importance is not None:
        # Only the proportions within a block count, and nothing where all is 0.
        each = importance.astype(np.float64).reshape(-1, form.block)
        most = each.max(axis=1, keepdims=True)
        importance = np.where(most > 0, each / np.where(most > 0, most, 1), 1).ravel()
    ours, theirs = losses(rows, values, importance, form.block), losses(rows, plain, importance, form.block)
    # Sums are taken in float32, of weights that are at most 1: a difference of so much is not seen.
    blind = 1e-6 * (rows.astype(np.float64) ** 2).reshape(len(rows), -1, form.block).max(axis=2) * form.block
    assert (ours <= theirs * 1.001 + blind * 1e-3).all()


@every_block
@pytest.mark.parametrize("weighed", [False, True], ids=["alike", "weighed"])
def test_better_than_llamacpp(form: NumberFormat, weighed: bool) -> None:
    """On the figure that both are told to keep small. Theirs is given the same importance."""
    rows = weights(64, 768, seed=7)
    importance = importances(768, seed=8) if weighed else None
    ours = loss(rows, form.decode(form.encode(rows, importance)), importance)
    theirs = loss(rows, form.decode(llamacpp.encoded(form, rows, importance)), importance)
    assert ours < theirs


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("q8_0", 2.26e-5),
        ("q6_k", 2.81e-4),
        ("q5_1", 1.13e-3),
        ("q5_k", 1.23e-3),
        ("q5_0", 1.65e-3),
        ("q4_1", 4.85e-3),
        ("q4_k", 4.95e-3),
        ("iq4_nl", 5.52e-3),
        ("iq4_xs", 5.6e-3),
        ("q4_0", 6.7e-3),
        ("q3_k", 2.1e-2),
        ("q2_k", 6.9e-2),
        ("tq2_0", 0.195),
        ("tq1_0", 0.195),
    ],
)
def test_error_that_a_normal_distribution_leaves(name: str, most: float) -> None:
    """Squared, as a share of the squares of the weights. Measured, with 3 % on top."""
    form = number_format(name)
    rows = np.random.default_rng(11).standard_normal((128, 512)).astype(np.float32)
    share = loss(rows, form.decode(form.encode(rows)), None) / float((rows.astype(np.float64) ** 2).sum())
    assert 0.9 * most < share < most


@any_block
def test_importance_moves_the_error_to_where_it_weighs_least(form: NumberFormat) -> None:
    rows = weights(32, 512, seed=2)
    importance = np.where(np.arange(512) % 4 == 0, 100, 1).astype(np.float32)
    heavy = importance > 1
    alike, weighed = form.decode(form.encode(rows)), form.decode(form.encode(rows, importance))
    assert loss(rows[:, heavy], weighed[:, heavy], None) < 0.99 * loss(rows[:, heavy], alike[:, heavy], None)
    assert loss(rows, weighed, importance) < loss(rows, alike, importance)


@any_block
def test_zeros_stay_zeros(form: NumberFormat) -> None:
    rows = weights(3, 2 * form.block)
    rows[1] = 0
    rows[2, : form.block] = -0.0
    values = form.decode(form.encode(rows, importances(2 * form.block)))
    assert (values[1] == 0).all() and (values[2, : form.block] == 0).all()
    assert (values[0] != 0).any() and (values[2, form.block :] != 0).any()


@pytest.mark.parametrize(
    "form", [form for form in [*BLOCKS, *OTHERS] if form.name != "nf4"], ids=lambda form: form.name
)
def test_weights_beyond_the_scales(form: NumberFormat) -> None:
    """The scales are float16: above they become the largest, and what is too small for the smallest becomes 0."""
    signs = np.where(np.arange(form.block) % 2, 1, -1).astype(np.float32)
    rows = np.stack([signs * np.float32(3.4e38), signs * np.float32(1e-12), signs * np.float32(1e-44)])
    values = form.decode(form.encode(rows))
    assert np.isfinite(values).all()
    assert (np.sign(values[0]) == signs).mean() >= 0.5 and np.abs(values[0]).max() >= 65504
    assert (values[1:] == 0).all()


@pytest.mark.parametrize("form", [form for form in BLOCKS if form.name not in SUPER], ids=lambda form: form.name)
@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=10)
def test_what_was_rounded_by_plain_rounding_is_kept(form: NumberFormat, seed: int) -> None:
    """A file of this format, as others write it, comes through unchanged: the outermost levels are in use, and the
    search tries the scale that puts the extreme weights on them."""
    rows = weights(8, 512, seed=seed)
    plain = np.stack([plainly(form, block) for block in rows.reshape(-1, form.block)]).reshape(rows.shape)
    values = plain.astype(np.float32)
    assert np.array_equal(form.decode(form.encode(values)), values)


@pytest.mark.parametrize("name", ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"])
@pytest.mark.parametrize("weighed", [False, True], ids=["alike", "weighed"])
def test_a_file_of_llamacpp_is_kept_byte_for_byte(name: str, weighed: bool) -> None:
    """As its quantiser writes it without importance: nothing is better than what is there already."""
    form = number_format(name)
    data = llamacpp.encoded(form, weights(64, 768, seed=3))
    importance = importances(768) if weighed else None
    assert np.array_equal(form.encode(form.decode(data), importance), data)


@every_block
def test_rounding_twice(form: NumberFormat) -> None:
    """What one encode wrote, the next reads: bit for bit with one scale; where scales are searched on two stages, or a
    block does not use its outermost codes, the grid is not always found again, and next to nothing is lost."""
    rows = weights(64, 768, seed=9)
    once = form.decode(form.encode(rows))
    twice = form.decode(form.encode(once))
    first = loss(rows, once, None)
    if form.name in SUPER or form.name.endswith("_1"):
        assert loss(once, twice, None) < 0.06 * first
    else:
        assert np.array_equal(once, twice)


@any_block
def test_a_matrix_of_one_block_is_not_changed(form: NumberFormat) -> None:
    rows = weights(1, form.block)
    before = rows.copy()
    form.encode(rows, importances(form.block))
    form.grid(rows)
    assert np.array_equal(rows, before)


@any_block
def test_rows_do_not_know_of_each_other(form: NumberFormat) -> None:
    rows, importance = weights(5, 3 * form.block, seed=1), importances(3 * form.block)
    whole = form.encode(rows, importance)
    for number in range(5):
        assert np.array_equal(form.encode(rows[number : number + 1], importance)[0], whole[number])
    assert np.array_equal(form.encode(rows[:, ::-1][:, ::-1], importance), whole)
    assert form.encode(rows[:0]).shape == (0, 3 * form.nbytes)
    assert form.decode(whole[:0]).shape == (0, 3 * form.block)


@pytest.mark.parametrize("name", ["q4_0", "q4_k"])
def test_memory_does_not_grow_with_the_matrix(name: str) -> None:
    form = number_format(name)
    peaks = []
    for count in (512, 1536):
        rows = weights(count, 1024)
        tracemalloc.start()
        data = form.encode(rows, importances(1024))
        form.decode(data[:1])
        peaks.append(tracemalloc.get_traced_memory()[1] - data.nbytes)
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] + (1 << 20)
    assert peaks[1] < 40 << 20
