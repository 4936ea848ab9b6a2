"""The tree of errors is drawn at the top of its file: the drawing is the truth."""

from __future__ import annotations

import json
import re

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


def test_the_drawing_is_the_tree() -> None:
    drawn = [
        (len(found[1]) // 4, found[2])
        for line in (errors.__doc__ or "").splitlines()
        if (found := re.match(r"    ([│├└─ ]*)(\w+Error)\b", line))
    ]
    assert drawn == tree(PressroomError)


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
