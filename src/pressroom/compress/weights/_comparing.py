"""What two files of weights differ in."""

from __future__ import annotations

from typing import Any

from pressroom.compress.weights._reading import Weights

_STEP = 16 << 20
_MOST_SHOWN = 60


def same(a: Weights, b: Weights) -> tuple[str, ...]:
    """What is different in `b`, one line each: keys, then tensors, both with their order; empty where nothing is.

    Values and data are compared byte for byte, so that a number of another width is different, too.
    """
    found = [*_order("keys", a.keys, b.keys), *_keys(a, b)]
    found += [*_order("tensors", tuple(a.tensors), tuple(b.tensors)), *_tensors(a, b)]
    if a.header.version != b.header.version:
        found.insert(0, f"GGUF version {a.header.version} became {b.header.version}")
    return tuple(found)


def _order(what: str, a: tuple[str, ...], b: tuple[str, ...]) -> list[str]:
    shared = set(a) & set(b)
    if [name for name in a if name in shared] == [name for name in b if name in shared]:
        return []
    return [f"the {what} are in another order"]


def _keys(a: Weights, b: Weights) -> list[str]:
    lines = []
    for key in dict.fromkeys((*a.keys, *b.keys)):
        mine, theirs = a.header.entries.get(key), b.header.entries.get(key)
        if mine is None:
            lines.append(f"key {key} is new: {_shown(b.value(key))}")
        elif theirs is None:
            lines.append(f"key {key} is gone: {_shown(a.value(key))}")
        elif mine.kind != theirs.kind or a.data[mine.value : mine.end] != b.data[theirs.value : theirs.end]:
            lines.append(f"key {key}: {_shown(a.value(key))} became {_shown(b.value(key))}")
    return lines


def _tensors(a: Weights, b: Weights) -> list[str]:
    lines = []
    for name in dict.fromkeys((*a.tensors, *b.tensors)):
        mine, theirs = a.tensors.get(name), b.tensors.get(name)
        if mine is None:
            lines.append(f"tensor {name} is new")
        elif theirs is None:
            lines.append(f"tensor {name} is gone")
        elif mine.shape != theirs.shape:
            lines.append(f"tensor {name}: {list(mine.shape)} became {list(theirs.shape)}")
        elif mine.number != theirs.number:
            lines.append(f"tensor {name}: {mine.type} became {theirs.type}")
        elif not _equal(a.raw(name), b.raw(name)):
            lines.append(f"tensor {name}: other data")
    return lines


def _equal(a: memoryview, b: memoryview) -> bool:
    # Comparing views goes byte by byte; slices of them as bytes go at the memory's speed.
    steps = range(0, max(len(a), len(b)), _STEP)
    return all(bytes(a[start : start + _STEP]) == bytes(b[start : start + _STEP]) for start in steps)


def _shown(value: Any) -> str:
    text = repr(value[:8]) + f" … ({len(value)})" if isinstance(value, list) and len(value) > 8 else repr(value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 1] + "…"
