"""Recipes predict what the tools of the field make, to the bit, whole and in blocks of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pressroom.kernel import StoreError
from pressroom.store import codec
from pressroom.store.formats.base import TensorInfo
from pressroom.store.recipe import Recipe
from pressroom.store.recipes import OPERATIONS, checked, guesses, predicted
from pressroom.store.recipes._rows import int8_rows, row_scales
from pressroom.store.recipes.base import Shape
from pressroom.store.recipes.values import SIZES, narrowed, widened

Array = NDArray[Any]
_RNG = np.random.default_rng(3)


class Parent:
    """Tensors in memory: name to type and float32 values."""

    def __init__(self, **tensors: tuple[str, Array]) -> None:
        self._shapes = {name.replace("__", "."): Shape(dtype, v.shape) for name, (dtype, v) in tensors.items()}
        self._bytes = {name.replace("__", "."): narrowed(v, dtype) for name, (dtype, v) in tensors.items()}

    def shape(self, name: str) -> Shape | None:
        return self._shapes.get(name)

    def read(self, name: str, start: int, stop: int) -> Array:
        size = SIZES[self._shapes[name].dtype]
        return self._bytes[name][start * size : stop * size]

    def values(self, name: str) -> Array:
        return widened(self._bytes[name], self._shapes[name].dtype).reshape(self._shapes[name].shape)


def told(recipe: Recipe, name: str, shape: Shape, parents: Sequence[Parent], rows: int = 0) -> Array:
    """The prediction, made in one piece or some rows at a time."""
    operation, filled = OPERATIONS[recipe.op], checked(recipe).parameters
    assert operation.shape(name, parents, filled) == shape
    detail = operation.prepare(name, shape, parents, filled)
    assert detail is not None
    step = rows * shape.row or shape.elements
    starts = range(0, shape.elements, step)
    return np.concatenate(
        [operation.predict(name, shape, parents, detail, s, min(s + step, shape.elements)) for s in starts]
    )


def weights(rows: int = 12, columns: int = 40) -> Array:
    return (_RNG.standard_normal((rows, columns)) * 0.05).astype(np.float32)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_numbers_survive_their_bytes(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    kind = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[dtype]
    values = np.concatenate(
        [weights().ravel(), np.array([0.0, -0.0, np.inf, -np.inf, 1e-45, 65520.0, 3.3895314e38], np.float32)]
    )
    data = narrowed(values, dtype)
    theirs = torch.from_numpy(values).to(kind)
    assert data.tobytes() == theirs.view(torch.uint8).numpy().tobytes()
    assert widened(data, dtype).tobytes() == theirs.float().numpy().tobytes()
    assert np.isnan(widened(narrowed(np.array([np.nan, -np.nan], np.float32), dtype), dtype)).all()


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_int8_by_rows_with_its_scales(rows: int) -> None:
    values = weights()
    values[3] = 0
    parent = Parent(w=("BF16", values))
    wide = parent.values("w")
    scale = np.abs(wide).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(invalid="ignore"):
        expected = np.nan_to_num(np.clip(np.rint(wide / scale), -127, 127)).astype(np.int8)
    recipe = Recipe("absmax_int8_row", ("b",))
    assert told(recipe, "w", Shape("I8", (12, 40)), [parent], rows).tobytes() == expected.tobytes()
    assert told(recipe, "w_scale", Shape("F32", (12, 1)), [parent], rows).tobytes() == scale.tobytes()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_the_kernel_quantises_what_numpy_does_to_the_last_bit(dtype: str) -> None:
    if codec.kernel() is None:
        pytest.skip("no C compiler")
    values = weights(20, 70)
    for row, special in enumerate([0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-45, 1e-39, 3.3e38, 65504.0, 127.5]):
        values[row, 3:60:7] = special
    values[12] = 0
    values[13] *= np.float32(1e-44)
    values[14:, :] = np.arange(-210, 210, dtype=np.float32).reshape(6, 70) / 2  # halves: ties
    data = narrowed(values, dtype)
    found = []
    for path in ("auto", "numpy"):
        codec.use(path)
        found.append((int8_rows(data, dtype, 70).tobytes(), row_scales(data, dtype, 70).tobytes()))
    codec.use("auto")
    assert found[0] == found[1]
    odd = np.empty(len(data) + 1, np.uint8)[1:]
    odd[:] = data
    assert (int8_rows(odd, dtype, 70).tobytes(), row_scales(odd, dtype, 70).tobytes()) == found[0]


@pytest.mark.parametrize("rows", [0, 5])
def test_pruning_by_magnitude(rows: int) -> None:
    parent = Parent(w=("BF16", weights()))
    wide = parent.values("w")
    border = np.sort(np.abs(wide).ravel())[int(wide.size * 0.25) - 1]
    expected = narrowed(np.where(np.abs(wide) <= border, np.float32(0), wide), "BF16")
    recipe = Recipe("magnitude_prune", ("b",), {"share": 0.25})
    assert told(recipe, "w", Shape("BF16", (12, 40)), [parent], rows).tobytes() == expected.tobytes()


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_merging_an_adapter_is_right_to_a_rounding(rows: int) -> None:
    base = Parent(m__q__weight=("BF16", weights()))
    a, b = weights(4, 40), weights(12, 4)
    adapter = Parent(
        base_model__model__m__q__lora_A__weight=("F32", a), base_model__model__m__q__lora_B__weight=("F32", b)
    )
    recipe = Recipe("lora_merge", ("b", "a"), {"alpha": 8})
    found = told(recipe, "m.q.weight", Shape("BF16", (12, 40)), [base, adapter], rows)
    exact = base.values("m.q.weight").astype(np.float64) + 2.0 * (b.astype(np.float64) @ a.astype(np.float64))
    off = found.view(np.uint16).astype(int) - narrowed(exact, "BF16").view(np.uint16).astype(int)
    assert np.abs(off).max() <= 1 and (off != 0).mean() < 0.01
    # However it is cut, the same bits.
    assert found.tobytes() == told(recipe, "m.q.weight", Shape("BF16", (12, 40)), [base, adapter]).tobytes()


def test_merging_models_and_casting() -> None:
    first, second = Parent(w=("F32", weights())), Parent(w=("F16", weights()))
    expected = first.values("w") * np.float32(0.3) + second.values("w") * np.float32(0.7)
    recipe = Recipe("linear_merge", ("a", "b"), {"weights": [0.3, 0.7]})
    found = told(recipe, "w", Shape("F32", (12, 40)), [first, second], 5)
    assert found.tobytes() == expected.tobytes()
    found = told(Recipe("cast", ("a",), {"dtype": "BF16"}), "w", Shape("BF16", (12, 40)), [second], 5)
    assert found.tobytes() == narrowed(second.values("w"), "BF16").tobytes()


class Array1(np.ndarray[Any, np.dtype[Any]]):
    dtype_name = "BF16"


def opened(_: int) -> dict[str, Any]:
    raw = narrowed(weights(), "BF16").view(np.uint16)
    return {"w": raw.reshape(12, 40).view(Array1), "norm": raw[:40].view(Array1)}


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        (Recipe("cast", ("a",)), "absent"),
        (Recipe("absmax_int8_row", ("a",)), "norm"),
        (Recipe("absmax_int8_row", ("a",)), "norm_scale"),
        (Recipe("magnitude_prune", ("a",), {"share": 0.0}), "w"),
        (Recipe("magnitude_prune", ("a",)), "norm"),
        (Recipe("lora_merge", ("a", "a")), "w"),
    ],
)
def test_what_a_recipe_does_not_tell_is_left_to_the_codec(recipe: Recipe, name: str) -> None:
    assert predicted(recipe.op, name, opened, recipe.parameters) is None


def test_a_whole_tensor_is_predicted_from_mappings() -> None:
    assert predicted("absmax_int8_row", "w", opened, {}) is not None
    assert len(predicted("absmax_int8_row", "w_scale", opened, {}) or b"") == 48
    assert len(predicted("linear_merge", "w", opened, {"weights": [0.5, 0.5]}) or b"") == 960


def test_types_say_which_recipes_are_worth_a_try() -> None:
    def info(name: str, dtype: str, *shape: int) -> TensorInfo:
        return TensorInfo(name=name, dtype=dtype, shape=shape, offset=0, nbytes=int(np.prod(shape)))

    parent = [info("w", "BF16", 12, 40), info("v", "BF16", 4, 40), info("norm", "F32", 40)]
    child = [info("w", "I8", 12, 40), info("v", "I8", 4, 40), info("norm", "BF16", 40), info("new", "I8", 2, 2)]
    found = [(recipe.op, dict(recipe.parameters), tried.name) for recipe, tried in guesses("d", parent, child)]
    assert found == [("absmax_int8_row", {"suffix": "_scale"}, "v"), ("cast", {"dtype": "BF16"}, "norm")]
    assert guesses("d", parent, parent) == []


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe("cats", ("a",)), "no operation 'cats'"),
        (Recipe("cast", ()), "0 parents are given"),
        (Recipe("lora_merge", ("a",)), "the base, the adapter; 1 parents"),
        (Recipe("linear_merge", ("a",), {"weights": [1.0]}), "1 parents"),
        (Recipe("linear_merge", ("a", "b"), {"weights": [1.0]}), "2 parents and 1 weights"),
        (Recipe("magnitude_prune", ("a",), {"sahre": 0.5}), "no parameter 'sahre'"),
        (Recipe("magnitude_prune", ("a",), {"share": float("nan")}), "is not what it takes"),
        (Recipe("cast", ("a",), {"dtype": "Q4_K"}), "does not make 'Q4_K'"),
    ],
)
def test_recipes_that_are_none(recipe: Recipe, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        checked(recipe)


def test_an_operation_of_a_newer_version_is_named() -> None:
    with pytest.raises(StoreError, match="no operation 'fold' for a recipe, in this version"):
        predicted("fold", "w", opened, {})
    assert set(OPERATIONS) == {"cast", "absmax_int8_row", "magnitude_prune", "lora_merge", "linear_merge"}
