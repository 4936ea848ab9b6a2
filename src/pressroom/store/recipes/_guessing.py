"""Which recipes a file looks made by: told by types and names alone, to be tried before they are believed."""

from __future__ import annotations

from collections.abc import Sequence

from pressroom.store.formats.base import TensorInfo
from pressroom.store.recipe import Recipe

_FLOATS = ("BF16", "F16", "F32")
_SUFFIX = "_scale"


def guesses(digest: str, parent: Sequence[TensorInfo], child: Sequence[TensorInfo]) -> list[tuple[Recipe, TensorInfo]]:
    """Recipes with the file `digest` as their parent, each with the smallest tensor of the child it can be tried on.

    Only those that cost nothing to see and that the difference of values cannot replace, because the types differ.
    """
    held = {info.name: info for info in parent}
    found: dict[tuple[str, str], tuple[Recipe, TensorInfo]] = {}
    for info in child:
        before = held.get(info.name)
        if before is None or before.shape != info.shape or before.dtype not in _FLOATS:
            continue
        if info.dtype == "I8" and len(info.shape) == 2:
            recipe = Recipe("absmax_int8_row", (digest,), {"suffix": _SUFFIX})
        elif info.dtype in _FLOATS and info.dtype != before.dtype:
            recipe = Recipe("cast", (digest,), {"dtype": info.dtype})
        else:
            continue
        key = recipe.op, info.dtype
        if key not in found or info.nbytes < found[key][1].nbytes:
            found[key] = recipe, info
    return [found[key] for key in sorted(found)]
