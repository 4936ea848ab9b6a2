"""Which lines of an input have an answer in an output already: 24 bytes a line in memory, whatever their length."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Collection
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from pressroom.gateway.batches.base import Line

_TAG = "batch_req_"
_HEXADECIMAL = re.compile(r"[0-9a-f]{16}")


class State(IntEnum):
    """What an output says of a line."""

    TODO = 0
    DONE = 1
    FAILED = 2
    #: There is an answer under its id, and it is that of another request.
    CHANGED = 3


def failed(result: dict[str, Any]) -> bool:
    """Whether a result is no answer."""
    response = result.get("response")
    return not isinstance(response, dict) or response.get("status_code") != 200


def key_of(custom_id: str) -> int:
    """A number that stands for an id."""
    return int.from_bytes(hashlib.blake2b(custom_id.encode(), digest_size=8).digest(), "little")


def _tag(tag: str) -> int:
    return int(tag[:16], 16) if _HEXADECIMAL.match(tag) else 0


class Index:
    """Ids with the requests they stand for, in the order they came."""

    def __init__(self) -> None:
        self._keys = array("Q")
        self._tags = array("Q")
        self._failed = bytearray()

    def add_line(self, line: Line) -> None:
        self._add(line.custom_id, line.tag, False)

    def add_result(self, result: dict[str, Any]) -> None:
        self._add(str(result.get("custom_id")), str(result["id"]).removeprefix(_TAG), failed(result))

    def __len__(self) -> int:
        return len(self._keys)

    def repeated(self) -> tuple[int, int] | None:
        """The places, from 0, of the first two with one id; None where there are none."""
        keys = np.frombuffer(self._keys, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        equal = np.flatnonzero(keys[order][1:] == keys[order][:-1])
        if not len(equal):
            return None
        first = equal[np.argmin(order[equal + 1])]
        return int(order[first]), int(order[first + 1])

    def states(self, results: Index) -> bytearray:
        """The State of each line of this input, one byte each, as `results` has it."""
        if not len(self) or not len(results):
            return bytearray(len(self))
        keys = np.frombuffer(results._keys, dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        wanted = np.frombuffer(self._keys, dtype=np.uint64)
        # The last result of an id is what counts.
        place = np.searchsorted(keys[order], wanted, side="right") - 1
        at = order[np.maximum(place, 0)]
        there = (place >= 0) & (keys[at] == wanted)
        same = np.frombuffer(results._tags, dtype=np.uint64)[at] == np.frombuffer(self._tags, dtype=np.uint64)
        bad = np.frombuffer(results._failed, dtype=np.uint8)[at] == 1
        states = np.where(same, np.where(bad, State.FAILED, State.DONE), State.CHANGED)
        return bytearray(np.where(there, states, State.TODO).astype(np.uint8).tobytes())

    def keys_where(self, states: bytearray, among: Collection[State]) -> npt.NDArray[np.uint64]:
        """The keys of the ids of the lines that are in one of these states, sorted."""
        chosen = np.isin(np.frombuffer(states, dtype=np.uint8), [int(state) for state in among])
        return np.sort(np.frombuffer(self._keys, dtype=np.uint64)[chosen])

    def has(self, place: int, line: Line) -> bool:
        """Whether the line at this place, from 0, is this one."""
        return self._keys[place] == key_of(line.custom_id) and self._tags[place] == _tag(line.tag)

    def _add(self, custom_id: str, tag: str, bad: bool) -> None:
        self._keys.append(key_of(custom_id))
        self._tags.append(_tag(tag))
        self._failed.append(bad)
