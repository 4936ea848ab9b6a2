"""What a file will come to, and what cannot be written: all of it at once, before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pressroom.compress.weights import Role, Weights, check, open_weights
from pressroom.kernel import RecipeError

from .gguf_files import Array, File, tiny


def test_a_plan(source: Weights) -> None:
    wanted = {tensor.name: "q4_0" for tensor in source.linears} | {"token_embd.weight": "q8_0", "output.weight": "F32"}
    plan = check(source, wanted)
    assert [one.tensor.name for one in plan.tensors] == list(source.tensors)
    assert [one.tensor.name for one in plan.changed] == [name for name in source.tensors if name in wanted][:-1]
    assert plan.before == source.size and not plan.tied
    # Linear layers of 64 x 64 twice, 32 x 64 twice and 64 x 128 three times, in two layers; the embedding of 288 x 64.
    linear = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
    embedding, norms = 288 * 64, 5 * 64
    assert plan.weights == linear + 2 * embedding + norms
    expected = {
        "F32": (6, embedding + norms, 4 * (embedding + norms)),
        "Q8_0": (1, embedding, embedding // 32 * 34),
        "Q4_0": (14, linear, linear // 32 * 18),
    }
    assert plan.types == expected and list(plan.types) == ["F32", "Q4_0", "Q8_0"]
    assert plan.bits_per_weight == pytest.approx(8 * sum(entry[2] for entry in expected.values()) / plan.weights)
    # The head was asked for as well, and it is in its format already.
    assert plan.covered == pytest.approx((linear + 2 * embedding) / plan.weights)
    (head,) = (one for one in plan.tensors if one.tensor.role is Role.HEAD)
    assert (head.wanted, head.type, head.changes) == ("f32", "F32", False)


def test_nothing_wanted(source: Weights) -> None:
    plan = check(source, {})
    assert plan.size == source.size and plan.changed == plan.wanted == () and plan.covered == 0
    assert plan.bits_per_weight == 32


def test_types_that_are_no_number_formats_stay(tmp_path: Path) -> None:
    arrays = {"blk.0.attn_q.weight": Array.of(np.ones((4, 32)), "F32"), "table": Array.of(np.ones((4, 32)), "I32")}
    with open_weights(File({}, arrays).write(tmp_path / "m.gguf")) as source:
        plan = check(source, {"blk.0.attn_q.weight": "q8_0"})
    assert plan.types == {"I32": (1, 128, 512), "Q8_0": (1, 128, 4 * 34)}
    assert plan.tensors[1].format is None and not plan.tensors[1].changes


def test_rows_that_are_no_whole_blocks_are_named_all_at_once(tmp_path: Path) -> None:
    file = tiny(layers=4, hidden=96, feed_forward=256)
    file.tensors["blk.2.attn_q.weight"] = Array.of(np.ones((40, 40), np.float32))
    with open_weights(file.write(tmp_path / "m.gguf")) as source:
        wanted = {tensor.name: "q4_k" for tensor in source.linears} | {"blk.2.attn_q.weight": "q4_0"}
        with pytest.raises(RecipeError) as caught:
            check(source, wanted)
        message = caught.value.message
        assert message.startswith("24 tensors of m.gguf cannot be written as asked. ")
        assert "blk.{0-1,3}.attn_q.weight [96, 96]" in message and "blk.{0-3}.ffn_up.weight [256, 96]" in message
        assert "blk.2.attn_q.weight [40, 40]: q4_0 comes in blocks of 32" in message
        assert "ffn_down" not in message  # its rows of 256 divide
        tensors = caught.value.facts["tensors"]
        assert len(tensors) == 24 and {one["name"] for one in tensors} <= set(wanted)
        (odd,) = (one for one in tensors if one["shape"] == [40, 40])
        assert odd["columns"] == 40 and odd["block"] == 32
        assert {"f16", "f32", "bf16"} <= set(odd["fitting"]) and not {"q4_0", "q4_k", "q8_0"} & set(odd["fitting"])
        assert {"q4_0", "iq4_nl", "q8_0"} <= set(tensors[0]["fitting"])
        assert "q4_k" not in tensors[0]["fitting"]


def test_norms_and_others_stay(tmp_path: Path) -> None:
    file = tiny(layers=2)
    file.tensors["blk.0.ffn_gate_inp.weight"] = Array.of(np.ones((4, 64), np.float32))
    file.tensors["blk.0.attn_q.bias"] = Array.of(np.ones(64, np.float32))
    with open_weights(file.write(tmp_path / "m.gguf")) as source:
        with pytest.raises(RecipeError) as caught:
            check(source, dict.fromkeys(source.tensors, "f16"))
        found = {one["name"] for one in caught.value.facts["tensors"]}
        norms = {tensor.name for tensor in source.of_role(Role.NORM)}
        assert found == norms | {"blk.0.ffn_gate_inp.weight", "blk.0.attn_q.bias"}
        assert "blk.{0-1}.attn_norm.weight [64]" in caught.value.message
        assert "is a bias" in caught.value.message and "is not the weight of a linear layer" in caught.value.message
        # As they are is no change, and asking for it no mistake.
        assert check(source, dict.fromkeys(source.tensors, "f32")).changed == ()


def test_names_that_are_not_there(source: Weights) -> None:
    with pytest.raises(RecipeError, match=r"no tensor blk\.9\.attn_q\.weight, nonsense") as caught:
        check(source, {"blk.9.attn_q.weight": "q8_0", "nonsense": "q8_0", "blk.0.attn_q.weight": "q8_0"})
    assert caught.value.facts["asked"] == ["blk.9.attn_q.weight", "nonsense"]
    with pytest.raises(RecipeError, match="q4_00"):
        check(source, {"blk.0.attn_q.weight": "q4_00"})


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    with open_weights(tiny(tied=True).write(tmp_path / "m.gguf")) as source:
        assert check(source, {"token_embd.weight": "q8_0"}).tied
        with pytest.raises(RecipeError) as caught:
            check(source, {"output.weight": "q8_0"})
    assert "token_embd.weight" in caught.value.hint
