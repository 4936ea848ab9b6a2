"""Weights of a model into a file like the one that they came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pressroom.compress.weights import New, Weights, rebuild
from pressroom.kernel import RecipeError


def save(
    path: Path,
    source: Weights,
    values: Mapping[str, NDArray[np.float32] | New],
    *,
    floats: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[str, ...]:
    """Write the source's file again with these tensors; returns the names of those that differ from the source's.

    What is equal bit for bit stays as it is, in its format; what changed is written as float16 (float32 where that has
    no room for it; as in the source where that has float32 or bfloat16). With `floats`, what the source has in float32
    becomes float16, too, changed or not.

    Raises:
        RecipeError: a weight is not a number, or infinite; all such tensors are named.
        StoreFullError, StoreError: see `pressroom.compress.weights.rebuild`.
    """
    broken = [name for name, given in values.items() if isinstance(given, np.ndarray) and not np.isfinite(given).all()]
    if broken:
        raise RecipeError(
            f"{len(broken)} tensors have weights that are no finite numbers: {', '.join(broken[:5])}",
            hint="Train at a lower rate.",
            tensors=broken,
        )
    tensors: dict[str, str | New] = {}
    changed = []
    for name, tensor in source.tensors.items():
        given = values.get(name)
        if isinstance(given, np.ndarray):
            if not floats and np.array_equal(given.reshape(tensor.rows, -1), source.rows(name)):
                given = None
            else:
                given = New.of(given, like=None if floats else tensor)
        if given is not None:
            changed.append(name)
        tensors[name] = name if given is None else given
    rebuild(path, source, tensors, progress=progress)
    return tuple(changed)
