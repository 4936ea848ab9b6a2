"""Which held tensors a new file's tensors are told from."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pressroom.store.family import _queries as queries
from pressroom.store.formats import TensorInfo

# Differences that may lie between a tensor and one that is told from nothing, by the setting `chains`.
DEPTHS = {"fast": 2, "small": 5}
# A file that would cost more than this as a difference is not related: coding it near is for nothing.
_UNRELATED = 0.6
# Restoring from one more difference has to save as much: half of the bytes, and more than a five-hundredth of the file.
_WORTH = 0.5
_WORTH_SHARE = 0.002
_MOST_RELATIVES = 256


class Candidate(NamedTuple):
    """A tensor to tell another one from: the estimated cost (0 to 1) and how deep it lies itself."""

    id: bytes
    cost: float
    depth: int


@dataclass(frozen=True)
class Relative:
    """A file that this one may be derived from: its tensors, by their number in the new file."""

    digest: str
    cost: float
    tensors: dict[int, tuple[bytes, int]]


def related(c: sqlite3.Connection, tensors: Sequence[TensorInfo], sketch: bytes, near: Sequence[str]) -> list[Relative]:
    """Files that share at least half of the bytes by name, type and shape and are near, the nearest first.

    Files named in `near` come first among equals and need not share as much.
    """
    from pressroom.store.family import _sketch as sketches

    wanted = {(t.name, t.dtype, tuple(t.shape)): n for n, t in enumerate(tensors)}
    total = sum(t.nbytes for t in tensors)
    found: list[Relative] = []
    for number, layout in queries.layouts(c).items():
        common = {
            wanted[key]: at for at, t in enumerate(layout) if (key := (t.name, t.dtype, tuple(t.shape))) in wanted
        }
        shared = sum(tensors[n].nbytes for n in common)
        files = queries.relatives(c, number)
        if 2 * shared < total:
            files = [file for file in files if file.digest in near]
        if not shared or not files:
            continue
        for file in [file for file in files if file.digest in near] + files[-_MOST_RELATIVES:]:
            if any(relative.digest == file.digest for relative in found):
                continue
            cost = sketches.distance(tensors, sketch, layout, file.sketch, common)
            if cost < _UNRELATED:
                held = queries.with_depths(c, file.digest)
                usable = {n: held[at][:2] for n, at in common.items() if at in held and held[at][2]}
                found.append(Relative(file.digest, cost, usable))
    return sorted(found, key=lambda relative: (round(relative.cost, 3), relative.digest not in near))


def choose(relatives: Sequence[Relative], number: int, chains: str) -> Candidate | None:
    """The tensor that tensor `number` of the new file is best told from, by the policy `chains`."""
    deepest = DEPTHS[chains] - 1
    best: dict[int, Candidate] = {}
    for relative in relatives:
        if number in relative.tensors:
            identity, depth = relative.tensors[number]
            if depth <= deepest and (depth not in best or relative.cost < best[depth].cost):
                best[depth] = Candidate(identity, relative.cost, depth)
    chosen: Candidate | None = None
    for _, candidate in sorted(best.items()):
        if chosen is None:
            chosen = candidate
        elif chains == "small":
            chosen = min(chosen, candidate, key=lambda one: one.cost)
        elif candidate.cost < _WORTH * chosen.cost - _WORTH_SHARE:
            chosen = candidate
    return chosen
