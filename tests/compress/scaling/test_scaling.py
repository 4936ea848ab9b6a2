"""Which scales can be moved where, and how large they are best."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pressroom.compress.numbers import number_format
from pressroom.compress.scaling import best_scales, factors, pairs
from pressroom.compress.weights import open_weights
from pressroom.kernel import RecipeError
from tests.compress.rounding.layers import error, layer
from tests.compress.weights.gguf_files import STRING, Array, tiny


def test_pairs_of_a_llama(tmp_path: Path) -> None:
    with open_weights(tiny().write(tmp_path / "tiny.gguf")) as source:
        found = pairs(source)
    assert [pair.name for pair in found] == [
        f"blk.{layer}.{one}" for layer in (0, 1) for one in ("attn_norm", "attn_v", "ffn_norm", "ffn_up")
    ]
    assert found[0].after == tuple(f"blk.0.attn_{one}.weight" for one in "qkv")
    assert found[1].heads == (2, 2, 16)
    assert found[3].before == ("blk.0.ffn_up.weight",) and found[3].after == ("blk.0.ffn_down.weight",)


def test_what_an_unknown_reader_reads_is_left_alone(tmp_path: Path) -> None:
    file = tiny()
    file.tensors["blk.1.ffn_gate_inp.weight"] = Array.of(np.zeros((4, 64), np.float32))
    with open_weights(file.write(tmp_path / "experts.gguf")) as source:
        assert [pair.name for pair in pairs(source) if ".1." in pair.name] == ["blk.1.attn_norm", "blk.1.attn_v"]
    file = tiny()
    file.keys["general.architecture"] = (STRING, "phi2")
    with open_weights(file.write(tmp_path / "phi.gguf")) as source, pytest.raises(RecipeError, match="'phi2'"):
        pairs(source)


def test_heads_that_share_values_share_scales(tmp_path: Path) -> None:
    with open_weights(tiny().write(tmp_path / "tiny.gguf")) as source:
        pair = pairs(source)[1]
    rows = np.arange(32, dtype=np.float32)
    columns = pair.spread(rows)
    # Heads 0 and 1 read the first values, 2 and 3 the second.
    assert columns.tolist() == [*range(16), *range(16), *range(16, 32), *range(16, 32)]
    assert np.array_equal(pair.shared(columns), rows)
    found = factors([(pair, rows + 1)])
    assert found["blk.0.attn_v.weight"][1] is None and found["blk.0.attn_output.weight"][0] is None
    products = np.asarray(found["blk.0.attn_output.weight"][1]) * pair.spread(
        np.asarray(found["blk.0.attn_v.weight"][0])
    )
    assert products == pytest.approx(1)


@pytest.mark.parametrize("name", ["q4_0", "int4-g64", "int3-g32", "int4-channel"])
@pytest.mark.parametrize("whole", [True, False], ids=["hessian", "moments"])
def test_scaled_columns_lose_less(name: str, whole: bool) -> None:
    """Where some columns matter far more: on rows that were not looked at, too, by a measure of the tests' own."""
    weights, hessian = layer(96, 128, seed=4)
    large = np.where(np.arange(128) % 16 == 3, 8, 1).astype(np.float32)
    hessian = hessian * large * large[:, None]
    moments = hessian.diagonal().copy()
    form = number_format(name)
    found = best_scales([weights[:32]], moments, form, hessian=hessian if whole else None)
    assert 0 < found.power < 1 and found.error < found.before
    rest = weights[32:]
    wide = rest * found.scales
    bound, plain = form.bound(wide, moments / found.scales**2), form.bound(rest, moments)
    with_scales = bound.decode(bound.encode(wide, moments / found.scales**2)) / found.scales
    without = plain.decode(plain.encode(rest, moments))
    assert error(rest, with_scales, hessian) < 0.95 * error(rest, without, hessian)


def test_nothing_to_gain_is_no_scaling() -> None:
    weights = np.random.default_rng(0).standard_normal((32, 64)).astype(np.float32)
    found = best_scales([weights], np.ones(64, np.float32), number_format("q4_0"))
    assert (found.scales == 1).all() and found.error == found.before
    none = best_scales([weights * 0], np.zeros(64, np.float32), number_format("q4_0"))
    assert (none.scales == 1).all() and none.error == none.before == 0


def test_scales_stay_within_bounds() -> None:
    weights, hessian = layer(16, 64, seed=1)
    moments = hessian.diagonal() * np.where(np.arange(64) == 5, 1e12, 1).astype(np.float32)
    moments[7] = 0
    found = best_scales([weights], moments.astype(np.float32), number_format("q4_0"), steps=3)
    assert np.isfinite(found.scales).all() and found.scales.max() / found.scales.min() <= 260
