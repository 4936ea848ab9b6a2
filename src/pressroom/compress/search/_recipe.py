"""What a search found, as a recipe: the same file can be made again without searching."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pressroom.compress.recipe import CalibrationText, Recipe, Step

_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.weight")


def recipe_of(formats: Mapping[str, str], *, name: str, calibration: CalibrationText) -> Recipe:
    """A recipe with a step for each format and set of layers, that means just these tensors."""
    layers: dict[str, dict[str, list[int]]] = {}
    steps = []
    for tensor, format in formats.items():
        found = _LAYER.fullmatch(tensor)
        if found is None:
            steps.append(Step(to=format, targets=re.escape(tensor)))
        else:
            layers.setdefault(format, {}).setdefault(found[2], []).append(int(found[1]))
    for format, parts in layers.items():
        same: dict[tuple[int, ...], list[str]] = {}
        for part, numbers in parts.items():
            same.setdefault(tuple(sorted(numbers)), []).append(part)
        for blocks, names in same.items():
            steps.append(Step(to=format, targets=rf"blk\.{_one_of(map(str, blocks))}\.{_one_of(names)}\.weight"))
    return Recipe(steps=tuple(steps), calibration=calibration, name=name)


def _one_of(words: Iterable[str]) -> str:
    every = [re.escape(word) for word in words]
    return every[0] if len(every) == 1 else f"({'|'.join(every)})"
