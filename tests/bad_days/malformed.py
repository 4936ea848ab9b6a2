"""Requests that are wrong, by the thousand: cut, garbled and repeated bytes, and values of every wrong kind."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    1e308,
    10**30,
    -(2**63) - 1,
    "",
    "x",
    "\x00",
    "\ud800",
    "é" * 300,
    [],
    {},
    [[]],
    [None],
    [{}],
    {"": None},
    {"type": "text"},
    {"type": ["text"]},
    [{"role": "user"}],
    [{"role": "user", "content": 5}],
    [{"role": "user", "content": [{"type": "image_url"}]}],
    [0] * 300,
    "NaN",
]

#: Bodies that no JSON parser should survive by luck alone.
RAW = [
    b"",
    b" ",
    b"null",
    b"[]",
    b'"text"',
    b"{",
    b"{}",
    b"}" * 100,
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"model": NaN}',
    b'{"model": Infinity}',
    b'{"model": 1e999999}',
    b'{"model": -' + b"9" * 10_000 + b"}",
    b'{"model": "\\ud800"}',
    b'{"model": "\\x"}',
    b'{"model": "\xff\xfe"}',
    b"\xef\xbb\xbf{}",
    '{"model": "m"}'.encode("utf-16"),
    b"\x00" * 1_000,
    b"\x1f\x8b\x08\x00" + b"\x00" * 40,
    b'{"model": "m"}{"model": "m"}',
    b'{"model": "m",}',
    b"{'model': 'm'}",
    b'{"model": "m" /* why */}',
    b'{"model": ' + b'"' + b"m" * 100_000 + b'"}',
]


def bodies(good: list[bytes], count: int, *, seed: int) -> Iterator[bytes]:
    """`count` bodies made from good ones; the same for the same seed."""
    chance = random.Random(seed)
    for number in range(count):
        if number < len(RAW):
            yield RAW[number]
        elif chance.random() < 0.5:
            yield garbled(chance.choice(good), chance)
        else:
            yield mistyped(chance.choice(good), chance)


def garbled(good: bytes, chance: random.Random) -> bytes:
    """It with some of its bytes changed, missing or repeated."""
    body = bytearray(good)
    for _ in range(chance.randrange(1, 5)):
        at = chance.randrange(len(body))
        match chance.randrange(4):
            case 0:
                body[at] = chance.randrange(256)
            case 1:
                del body[at : at + chance.randrange(1, 9)]
            case 2:
                body[at:at] = body[max(0, at - chance.randrange(1, 30)) : at]
            case _:
                del body[at:]
        body = body or bytearray(b"x")
    return bytes(body)


def mistyped(good: bytes, chance: random.Random) -> bytes:
    """It with a value somewhere replaced by one of another kind, or under a name that there is not."""
    record = json.loads(good)
    places = list(_places(record))
    for _ in range(chance.randrange(1, 3)):
        holder, key = chance.choice(places)
        if isinstance(holder, dict) and chance.random() < 0.2:
            holder[str(key) + "?"] = chance.choice(ODD)
        else:
            holder[key] = chance.choice(ODD)
    return json.dumps(record).encode(errors="surrogatepass")


def _places(record: Any) -> Iterator[tuple[Any, Any]]:
    keys = record if isinstance(record, dict) else range(len(record))
    for key in list(keys):
        yield record, key
        if isinstance(record[key], dict | list):
            yield from _places(record[key])
