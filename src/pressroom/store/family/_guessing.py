"""Recipes that nobody recorded: seen from names and types, tried on one tensor, believed where they are right."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import numpy as np

from pressroom.kernel.errors import NotFoundError, StoreError
from pressroom.store.family import _queries as queries
from pressroom.store.family._adding import opened_parent
from pressroom.store.family._parts import Parts
from pressroom.store.family._source import Source
from pressroom.store.formats import TensorInfo
from pressroom.store.recipe import Recipe, prediction
from pressroom.store.recipes import guesses

# Files that are tried; each takes a few milliseconds.
_MOST = 16
# A recipe that foretells so much of a tensor is not right by chance.
_RIGHT = 0.95


def guessed(parts: Parts, source: Source, near: Sequence[str]) -> list[Recipe]:
    """Recipes by which the file seems to be made from one that is held; mostly none."""
    tensors = source.info.tensors
    best: list[Recipe] = []
    most = _RIGHT
    for digest, held in parts.index.read(lambda c: _candidates(c, tensors, near)):
        rights = [(recipe, _right(parts, source, recipe, info)) for recipe, info in guesses(digest, held, tensors)]
        found = [recipe for recipe, right in rights if right >= _RIGHT]
        right = max((right for _, right in rights), default=0.0)
        if found and right > most:
            best, most = found, right
        if most == 1.0:
            break
    return best


def _candidates(
    c: sqlite3.Connection, tensors: Sequence[TensorInfo], near: Sequence[str]
) -> list[tuple[str, queries.Layout]]:
    """Files that have half of these elements under the same names and shapes, but of another type; `near` first."""
    wanted = {(tensor.name, tensor.shape): tensor for tensor in tensors}
    total = sum(tensor.elements for tensor in tensors)
    found: list[tuple[int, str, queries.Layout]] = []
    for number, layout in queries.layouts(c).items():
        other = [
            held.elements
            for held in layout
            if (mine := wanted.get((held.name, held.shape))) is not None and mine.dtype != held.dtype
        ]
        if 2 * sum(other) >= total:
            found += [(row, file, layout) for row, file in queries.files_of(c, number)]
    found.sort(key=lambda entry: (entry[1] in near, entry[0]), reverse=True)
    return [(file, layout) for _, file, layout in found[:_MOST]]


def _right(parts: Parts, source: Source, recipe: Recipe, info: TensorInfo) -> float:
    """How much of a tensor the recipe foretells: 0 to 1."""
    try:
        tensors, _ = opened_parent(parts, recipe.parents[0])
        told = prediction(recipe, info.name, lambda _: tensors)
    except (NotFoundError, StoreError):
        return 0.0  # the parent is damaged or going: the file is kept all the same
    if told is None or len(told) != info.nbytes:
        return 0.0
    real = np.empty(info.nbytes, np.uint8)
    source.read(info.offset, real.data)
    return np.count_nonzero(real == np.frombuffer(told, np.uint8)) / len(real)
