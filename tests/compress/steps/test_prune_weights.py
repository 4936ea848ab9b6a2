"""Single weights set to 0: as many as were asked for, in the file that is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pressroom.compress import Made
from pressroom.compress.steps import step
from pressroom.compress.weights import Role, open_weights
from pressroom.kernel import RecipeError
from tests.compress.calibrate.tiny_llama import TinyLlama

from .conftest import Carry, PathOf, Run


def zeros(path: Path) -> dict[str, float]:
    with open_weights(path) as found:
        return {tensor.name: float((found.rows(tensor.name) == 0).mean()) for tensor in found.linears}


def value(made: Made, name: str) -> Any:
    figure = made.version.figure(name)
    assert figure is not None
    return figure.value


@pytest.mark.parametrize("by", ["sparsegpt", "wanda", "magnitude"])
def test_so_many_weights_go(run: Run, by: str) -> None:
    report, path = run("prune-weights", by=by, ratio=0.5, targets=r"blk\..*ffn.*")
    found = zeros(path)
    assert all(abs(share - (0.5 if "ffn" in name else 0)) < 1e-3 for name, share in found.items())
    assert [line["name"] for line in report.tensors] == [name for name in found if "ffn" in name]
    assert abs(report.figures["sparsity"][0] - 0.5 * 24576 / 36864) < 1e-3
    assert any("neither the file nor the time" in note for note in report.notes)


def test_what_loses_less(run: Run) -> None:
    lost = [
        run("prune-weights", by=by, ratio=0.5)[0].figures["pruning_error"][0]
        for by in ("sparsegpt", "wanda", "magnitude")
    ]
    assert lost == sorted(lost) and lost[0] < 0.8 * lost[2]


def test_a_pattern(run: Run) -> None:
    report, path = run("prune_weights", pattern="2:4")
    with open_weights(path) as found:
        for tensor in found.linears:
            assert ((found.rows(tensor.name).reshape(-1, 4) == 0).sum(axis=1) == 2).all()
    assert any("No engine" in note for note in report.notes)


@pytest.mark.parametrize("how", [{"ratio": 0.5}, {"pattern": "2:4"}])
def test_zeros_stay_behind_rounding(carry: Carry, path_of: PathOf, how: dict[str, Any]) -> None:
    plain = {"to": "q5_0", "targets": r".*ffn_up\.weight", "rounding": "nearest"}
    made = carry({"method": "prune-weights", **how}, {"to": "q4_0", "targets": r"blk\..*"}, plain)
    assert made.version.kind == "quantised" and made.version.tags["recipe"] == "prune-weights"
    found = zeros(path_of(made))
    assert min(found.values()) >= 0.499
    with open_weights(path_of(made)) as small:
        weights = {tensor.name: tensor.elements for tensor in small.linears}
        share = sum(found[name] * count for name, count in weights.items()) / sum(weights.values())
        assert abs(value(made, "sparsity") - share) < 1e-5
        if "pattern" in how:
            for tensor in small.linears:
                assert ((small.rows(tensor.name).reshape(-1, 4) == 0).sum(axis=1) >= 2).all()
        assert (made.plan.before, made.plan.size) == (748_928, small.size)


def test_a_format_without_a_zero_is_said_in_the_figure(carry: Carry) -> None:
    """q4_1 has no 0 in every block: the figure is that of the file, not that of the step."""
    made = carry({"method": "prune-weights", "ratio": 0.5}, {"to": "q4_1", "targets": r"blk\..*"})
    assert value(made, "sparsity") < 0.4


def test_experts_each_by_what_enters_it(run: Run, tmp_path: Path) -> None:
    model = TinyLlama(experts=4, context=512).write(tmp_path / "experts.gguf")
    report, path = run("prune-weights", source=model, pattern="2:4", targets=r".*_exps\.weight")
    with open_weights(path) as found:
        for tensor in found.of_role(Role.EXPERTS):
            assert ((found.rows(tensor.name).reshape(-1, 4) == 0).sum(axis=1) == 2).all()
            assert len(tensor.shape) == 3 and tensor.shape[0] == 4
    assert len(report.tensors) == 6 and 0 < report.figures["sparsity"][0] < 0.5


def test_in_passes(run: Run, tmp_path: Path) -> None:
    report, path = run("prune-weights", ratio=0.5, passes=2)
    assert all(abs(share - 0.5) < 1e-3 for share in zeros(path).values())
    assert len(report.tensors) == 28 and list((tmp_path / "folder").iterdir()) == []
    with open_weights(path) as later, open_weights(run("prune-weights", ratio=0.5)[1]) as once:
        for name in (tensor.name for tensor in later.linears):
            # What is behind the first group saw other inputs.
            assert np.array_equal(later.rows(name), once.rows(name)) == (name[:5] not in ("blk.2", "blk.3")), name


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "ratio or pattern"),
        ({"ratio": 0.5, "pattern": "2:4"}, "ratio or pattern"),
        ({"ratio": 1.5}, r"ratio = 1\.5 is not"),
        ({"pattern": "4:2"}, "not like '2:4'"),
        ({"pattern": "x"}, "not like '2:4'"),
        ({"ratio": 0.5, "by": "taste"}, "by = 'taste' is none of sparsegpt"),
        ({"ratio": 0.5, "per": "model", "targets": "(", "passes": 0}, "per = 'model'.*passes = 0.*targets"),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        step("prune-weights", options)


def test_what_does_not_fit_is_said_first(run: Run) -> None:
    with pytest.raises(RecipeError, match=r"no linear layer is meant by targets = 'nothing'"):
        run("prune-weights", ratio=0.5, targets="nothing")
    with pytest.raises(RecipeError, match=r"groups of 48 have blk\.0\.attn_q\.weight"):
        run("prune-weights", pattern="24:48")
