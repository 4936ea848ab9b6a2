"""Steps by name, and options by type."""

from __future__ import annotations

from typing import Any

import pytest

from pressroom.compress import parse
from pressroom.compress.recipe import Recipe, Step, out_of_order, step_as_dict
from pressroom.compress.steps import Stage, step, step_kinds
from pressroom.compress.steps import Step as OtherStep
from pressroom.compress.steps._loading import kind_of
from pressroom.kernel import RecipeError
from pressroom.registry.base import KINDS


def test_what_there_is() -> None:
    assert {"drop-layers", "prune-weights", "prune-width"} <= set(step_kinds())
    found = step("Prune_Weights", {"ratio": 1e-3, "targets": "x"})
    assert isinstance(found, OtherStep) and found.method == "prune-weights" and found.stage is Stage.SPARSITY
    assert step_as_dict(found)["method"] == "prune-weights"


@pytest.mark.parametrize("method", step_kinds())
def test_every_kind_says_what_its_options_are(method: str) -> None:
    kind = kind_of(method)
    assert kind.made.kind in KINDS and isinstance(kind.made.stage, Stage)
    assert set(kind.made.options) == set(kind.options) and all(text for _, _, text in kind.options.values())
    with pytest.raises(RecipeError, match="no_such_thing is not an option"):
        step(method, {"no_such_thing": 1})


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(RecipeError) as raised:
        step("prune-weights", {"ratoi": 0.5, "by": 7, "passes": 1.5, "pattern": ["2:4"], "ratio": True})
    problems = raised.value.facts["problems"]
    assert len(problems) == 5 and "Did you mean ratio" in problems[0]
    assert "passes = 1.5 is not a whole number" in problems and "ratio = True is not a number" in problems
    with pytest.raises(RecipeError, match="there is no method 'prune-wieghts'") as raised:
        step("prune-wieghts", {})
    assert "prune-weights" in (raised.value.hint or "")
    with pytest.raises(RecipeError, match="no method"):
        step("../base", {})
    for value in (float("nan"), float("inf"), "0.5", None):
        with pytest.raises(RecipeError, match="ratio = "):
            step("prune-weights", {"ratio": value})


def test_in_a_recipe() -> None:
    table: dict[str, Any] = {
        "seed": 3,
        "step": [
            {"method": "drop-layers", "layers": [1, 2]},
            {"method": "prune-weights", "ratio": 0.5},
            {"to": "q4_0"},
            {"method": "quantise", "to": "q8_0", "targets": ".*attn_v.*"},
        ],
    }
    found = parse(table, name="x")
    assert [one.method for one in found.steps] == ["drop-layers", "prune-weights", "quantise", "quantise"]
    assert parse(found.as_dict()) == found and found.seed == 3
    parts = found.parts
    assert [isinstance(part, Recipe) for part in parts] == [False, False, True]
    assert isinstance(parts[2], Recipe) and len(parts[2].steps) == 2 and found.calibrates
    assert not parse({"step": table["step"][:1]}).calibrates
    with_ends = parse({"embedding": "q8_0", "step": table["step"][:1]})
    assert isinstance(with_ends.parts[-1], Recipe) and with_ends.parts[-1].embedding == "q8_0"


def test_mistakes_in_a_recipe() -> None:
    wrong = {
        "seed": -1,
        "step": [
            {"method": "prune-weights", "ratio": "much", "too": 1},
            {"method": "distill-me"},
            {"method": 5},
            {"method": "quantise"},
        ],
    }
    with pytest.raises(RecipeError) as raised:
        parse(wrong)
    problems = raised.value.facts["problems"]
    for said in (
        "seed = -1 is not",
        "step 1.ratio = 'much' is not a number",
        "step 1.too is not an option of prune-weights",
        "step 2.method: there is no method 'distill-me'",
        "step 3.method = 5",
        "step 4.to is missing",
    ):
        assert sum(problem.startswith(said) for problem in problems) == 1, (said, problems)
    assert len(problems) == 6


def test_an_order_that_cannot_work() -> None:
    steps = [{"to": "q4_0"}, {"method": "prune-weights", "ratio": 0.5}, {"method": "drop-layers", "count": 1}]
    with pytest.raises(RecipeError) as raised:
        parse({"step": steps})
    problems = raised.value.facts["problems"]
    assert problems[0].startswith("step 2 (prune-weights), which is about sparsity, must come before step 1 (quantise)")
    assert len(problems) == 2
    assert "must come before step 1 (quantise)" in problems[1]
    assert len(Recipe(steps=(Step(to="q4_0"),)).parts) == 1


def test_a_step_may_come_behind_one_whose_work_it_keeps() -> None:
    class Keeps(OtherStep):
        stage, kind = Stage.TRAINING, "fine-tune"
        keeps = frozenset({Stage.SPARSITY})  # type: ignore[assignment]

        def check(self, source: Any) -> None: ...

        def run(self, source: Any, target: Any, job: Any) -> Any: ...

    prune, drop = step("prune-weights", {"ratio": 0.5}), step("drop-layers", {"layers": [1]})
    assert out_of_order([prune, Keeps()]) == [] and len(out_of_order([Step(to="q4_0"), Keeps()])) == 1
    (said,) = out_of_order([prune, Keeps(), drop])
    assert said.startswith("step 3 (drop-layers)") and "step 1 (prune-weights)" in said
