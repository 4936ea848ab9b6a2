"""The tree of errors is drawn at the top of its file: the drawing is the truth."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator

import pytest

from pressroom.kernel import PressroomError, did_you_mean, errors, nearest


def tree(kind: type[PressroomError], depth: int = 0) -> list[tuple[int, str]]:
    below = [
        entry
        for child in kind.__subclasses__()
        if child.__module__ == errors.__name__
        for entry in tree(child, depth + 1)
    ]
    return [(depth, kind.__name__), *below]


def drawing() -> list[tuple[int, str, bool]]:
    """Depth and name of each error that is drawn, and whether it has a star: another part defines it."""
    return [
        (len(found[1]) // 4, found[2], bool(found[3]))
        for line in (errors.__doc__ or "").splitlines()
        if (found := re.match(r"    ([│├└─ ]*)(\w+Error)\b( \*)?", line))
    ]


def test_the_drawing_is_the_tree() -> None:
    assert [(depth, name) for depth, name, starred in drawing() if not starred] == tree(PressroomError)


def test_the_drawing_has_the_errors_that_other_parts_define() -> None:
    gateway = ("gateway.batches.base", "gateway.bench.base", "gateway.feeds.base")
    for part in ("kernel.keys", "store.codec.base", "registry.base", "registry.hub.base", "track.base", *gateway):
        importlib.import_module(f"pressroom.{part}")
    above: list[str] = []
    drawn = set()
    for depth, name, starred in drawing():
        above[depth:] = [name]
        if starred:
            drawn.add((above[depth - 1], name))
    assert drawn == set(public(PressroomError))


def public(kind: type[PressroomError]) -> Iterator[tuple[str, str]]:
    """Names of errors that others may catch and that are not in the file of the drawing, behind what they are."""
    for child in kind.__subclasses__():
        module = child.__module__.split(".")
        if (
            module[0] == "pressroom"
            and child.__module__ != errors.__name__
            and not any(part.startswith("_") for part in module)
        ):
            yield kind.__name__, child.__name__
        yield from public(child)


def test_every_error_has_its_own_code() -> None:
    kinds = [getattr(errors, name) for _, name in tree(PressroomError)]
    assert len({kind.code for kind in kinds}) == len(kinds)


@pytest.mark.parametrize("name", [name for _, name in tree(PressroomError)])
def test_an_error_is_a_record(name: str) -> None:
    error = getattr(errors, name)("it is so", hint="Do this.", asked="x", known=["y"])
    assert str(error) == "it is so"
    assert json.loads(json.dumps(error.as_dict())) == {
        "code": error.code,
        "message": "it is so",
        "hint": "Do this.",
        "asked": "x",
        "known": ["y"],
    }


def test_nearest() -> None:
    assert nearest("smolm2", ["smollm2", "llama", "qwen"]) == ["smollm2"]
    assert nearest("zzz", ["smollm2"]) == []
    assert nearest("a", []) == []
    assert did_you_mean("smolm2", ["smollm2"]) == "Did you mean smollm2?"
    assert did_you_mean("zzz", ["smollm2"], otherwise="See the list.") == "See the list."
