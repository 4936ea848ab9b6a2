"""Keys and values of prompts and answers that may come again, the longest unused dropped first."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pressroom.engines._transformers.rows import Kept

# Fewer tokens in common are not worth a look; entries are found by their first ones.
_LEAST = 8


class _Entry:
    __slots__ = ("bytes", "kept", "tokens")

    def __init__(self, tokens: NDArray[np.int64], kept: Kept) -> None:
        self.tokens = tokens
        self.kept = kept
        self.bytes = sum(each.numel() * each.element_size() for pair in kept for each in pair) + tokens.nbytes


class Prefixes:
    """At most `most` bytes. Used by the thread that runs the model alone."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.bytes = 0
        self._entries: OrderedDict[int, _Entry] = OrderedDict()
        self._by_start: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        self._next = 0

    def find(self, tokens: Sequence[int]) -> tuple[int, Kept | None]:
        """How many of the first tokens are known, at most all but the last, and their keys and values (views)."""
        asked = np.asarray(tokens, dtype=np.int64)
        best, found = self._longest(asked)
        best = min(best, len(asked) - 1)
        if found is None or best < _LEAST:
            return 0, None
        self._entries.move_to_end(found)
        kept = self._entries[found].kept
        return best, [(keys[:, :best], values[:, :best]) for keys, values in kept]

    def add(self, tokens: Sequence[int], kept: Kept) -> None:
        """Keep these; entries that are a prefix of them go, and nothing happens where they are one themselves."""
        if not self.most or len(tokens) < _LEAST:
            return
        asked = np.asarray(tokens, dtype=np.int64)
        start = tuple(tokens[:_LEAST])
        for number in list(self._by_start.get(start, ())):
            entry = self._entries[number]
            common = _common(entry.tokens, asked)
            if common == len(asked):
                self._entries.move_to_end(number)
                return
            if common == len(entry.tokens):
                self._drop(number)
        entry = _Entry(asked, kept)
        if entry.bytes > self.most:
            return
        while self.bytes + entry.bytes > self.most:
            self._drop(next(iter(self._entries)))
        self._next += 1
        self._entries[self._next] = entry
        self._by_start[start].add(self._next)
        self.bytes += entry.bytes

    def holds(self, tokens: Sequence[int]) -> bool:
        """Whether all of these are known: they need not be copied again."""
        asked = np.asarray(tokens, dtype=np.int64)
        return self._longest(asked)[0] == len(asked)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self._by_start.clear()
        self.bytes = 0

    def _longest(self, asked: NDArray[np.int64]) -> tuple[int, int | None]:
        best, found = 0, None
        for number in self._by_start.get(tuple(asked[:_LEAST].tolist()), ()):
            common = _common(self._entries[number].tokens, asked)
            if common > best:
                best, found = common, number
        return best, found

    def _drop(self, number: int) -> None:
        entry = self._entries.pop(number)
        self.bytes -= entry.bytes
        start = tuple(entry.tokens[:_LEAST].tolist())
        self._by_start[start].discard(number)
        if not self._by_start[start]:
            del self._by_start[start]


def _common(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    size = min(len(one), len(other))
    different = np.flatnonzero(one[:size] != other[:size])
    return int(different[0]) if len(different) else size
