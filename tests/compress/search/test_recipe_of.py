"""What a search found, written down as a recipe, means just the same tensors."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pressroom.compress import CalibrationText, read_recipe
from pressroom.compress.search._recipe import recipe_of

_PARTS = ("attn_q", "attn_k", "ffn_down", "ffn_gate")
_NAMES = [f"blk.{layer}.{part}.weight" for layer in range(12) for part in _PARTS] + ["token_embd.weight"]


@given(st.dictionaries(st.sampled_from(_NAMES), st.sampled_from(["q8_0", "q5_1", "iq4_nl"]), min_size=1))
def test_every_tensor_is_meant_by_its_format_and_no_other_tensor_is(formats: dict[str, str]) -> None:
    recipe = recipe_of(formats, name="found", calibration=CalibrationText(tokens=1024))
    for name in _NAMES:
        meant = {step.to for step in recipe.steps if step.matches(name)}
        assert meant == ({formats[name]} if name in formats else set())


def test_the_file_says_the_same(tmp_path: Path) -> None:
    formats = {"blk.1.ffn_down.weight": "q4_0", "blk.10.ffn_down.weight": "q4_0", "token_embd.weight": "q5_1"}
    recipe = recipe_of(formats, name='12 "MB"', calibration=CalibrationText(text="a\\b", tokens=1024))
    (tmp_path / "found.toml").write_text(recipe.as_toml(), encoding="utf-8")
    assert read_recipe(tmp_path / "found.toml") == recipe
