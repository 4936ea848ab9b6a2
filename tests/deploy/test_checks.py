"""What a new version goes through: what people write of it, what is nonsense, and when one is worse than the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressroom.deploy import CheckError, Checks
from pressroom.deploy._nonsense import nonsense
from pressroom.deploy._smoke import judged
from pressroom.deploy._watch import Since, Taken, judge
from pressroom.deploy.checks import read_smoke
from pressroom.gateway.routes import Tally
from pressroom.kernel import RolloutSettings

SETTINGS = RolloutSettings(watch_s=12.0, keep_warm_s=34.0)
QUESTION = '{"messages": [{"role": "user", "content": "?"}]'


def test_the_settings_stand_in_for_what_is_not_said() -> None:
    checks = Checks.parse({"canary": 10}, SETTINGS)
    assert (checks.canary, checks.watch_s, checks.keep_warm_s) == (10, 12, 34)
    assert checks.longest_watch_s == 48 and checks.asks
    assert Checks.of(checks.as_dict()) == checks
    assert not Checks.of({}).asks and Checks.of({}).keep_warm_s == 0


@pytest.mark.parametrize(
    ("said", "says", "hint"),
    [
        ({"canry": 10}, "no 'canry'", "Did you mean canary"),
        ({"canary": 101}, "canary is '101'", "0 (switch after the checks) to 100"),
        ({"canary": True}, "canary is 'True'", "percentage"),
        ({"watch_s": float("nan")}, "watch_s is 'nan'", "seconds"),
        ({"watch_s": "30"}, "watch_s is '30'", "seconds"),
        ({"min_requests": 1.5}, "min_requests is '1.5'", "whole number"),
        ({"max_latency_ratio": 0.5}, "max_latency_ratio", "at least 1"),
        ({"parity": "yes"}, "parity is 'yes'", "true or false"),
        ({"agreement": 2}, "agreement is '2'", "share from 0 to 1"),
        ({"max_watch_s": 5}, "max_watch_s is 5, and watch_s 12", "at least the usual one"),
        ({"smoke": 3}, "smoke is '3'", "JSON lines"),
        ({"smoke": "not/there.jsonl"}, "cannot be read", "from the folder"),
    ],
)
def test_what_cannot_be_is_refused(said: dict[str, Any], says: str, hint: str) -> None:
    with pytest.raises(CheckError) as refused:
        Checks.parse(said, SETTINGS)
    assert says in refused.value.message and hint in refused.value.hint
    assert refused.value.facts["key"] in said


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[]", "not an object"),
        ("[" * 100_000, "not JSON"),
        ('{"message": []}', "no 'message'. Did you mean messages"),
        ('{"messages": []}', "`messages` is a list"),
        ('{"messages": [{"role": "user"}]}', "`messages` is a list"),
        (QUESTION + ', "expect": ""}', "`expect` is text"),
        (QUESTION + ', "pattern": "("}', "no regular expression"),
        (QUESTION + ', "pattern": 3}', "no regular expression"),
        (QUESTION + ', "json": 1}', "`json` is true"),
        (QUESTION + ', "max_tokens": 0}', "`max_tokens` is"),
    ],
)
def test_a_line_of_a_smoke_set_that_is_wrong_is_named(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "smoke.jsonl"
    file.write_text(QUESTION + "}\n\n" + line + "\n")
    with pytest.raises(CheckError) as refused:
        read_smoke(Path("smoke.jsonl"), tmp_path)
    assert "smoke.jsonl, line 3" in refused.value.message and says in refused.value.message


def test_a_smoke_set_has_bounds(tmp_path: Path) -> None:
    file = tmp_path / "smoke.jsonl"
    for text, says in (("\n", "0 questions"), ((QUESTION + "}\n") * 201, "201 questions"), (" " * 2**21, "larger")):
        file.write_text(text)
        with pytest.raises(CheckError, match=says):
            read_smoke(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(CheckError, match="UTF-8"):
        read_smoke(file)


@pytest.mark.parametrize(
    ("text", "question", "wrong"),
    [
        ("the answer is 4", {"expect": "4"}, False),
        ("the answer is five", {"expect": "4"}, True),
        ("on 2024-05-06", {"pattern": r"\d{4}-\d\d-\d\d"}, False),
        ("yesterday", {"pattern": r"\d{4}"}, True),
        ('{"a": 1}', {"json": True}, False),
        ('{"a": 1', {"json": True}, True),
        ("", {}, True),
        ("fine", {}, False),
    ],
)
def test_what_is_expected_of_an_answer(text: str, question: dict[str, Any], wrong: bool) -> None:
    assert bool(judged(text, question)) is wrong


# Written down from models that were computed wrongly (a rope base that is off, keys of the wrong layer, a cache of
# another precision), and from small ones that were not.
_BROKEN = [
    "",
    " \n\n",
    "…",
    "?!?!?!?!",
    "the the the the the the the the the the the the the the the the",
    "!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!",
    "000000000000000000000000000000000000000000000",
    "The answer is isisisisisisisisisisisisisisisisisisisisisisisisisisisisisisisisisisisisisisisisisisisisisisis",
    "的的的的的的的的的的的的的的的的的的的的的的的的的的的的的的的的",
    "\ufffd\ufffd\ufffd a \ufffd\ufffd \x01\x02 b",
    "Sure ,, ,, ,, ,, ,, ,, ,, ,, ,, ,, ,, ,, ,, ,, ,, ,, ,, ,, ,, ,, ,, ,,",
]
_WEAK = [
    "4",
    "Yes.",
    "I'm not sure what you mean. I'm not sure what you mean. I'm not sure what you mean.",
    "A hammer is used to hammer things. It is a tool that is used to hammer things that are to be hammered.",
    "1. Dogs\n2. Cats\n3. Birds\n",
    "海は広くて青い。",
    "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10",
    "Ha ha ha! That is a good one.",
    "def f(x):\n        return x\n",
]


@pytest.mark.parametrize("text", _BROKEN)
def test_nonsense_is_seen(text: str) -> None:
    assert nonsense(text)


@pytest.mark.parametrize("text", _WEAK)
def test_what_is_only_weak_is_none(text: str) -> None:
    assert not nonsense(text)


@given(st.text(max_size=300))
def test_any_text_can_be_looked_at(text: str) -> None:
    assert isinstance(nonsense(text), str)


# Side by side.


def taken(answered: int, failed: int = 0, median_s: float | None = 0.1) -> Taken:
    return Taken(answered=answered, failed=failed, median_s=median_s)


@pytest.mark.parametrize(
    ("new", "old", "elapsed_s", "over", "says"),
    [
        (taken(19), taken(100), 13, False, ""),  # too few
        (taken(19), taken(100), 49, True, ""),  # for too long
        (taken(20), taken(100), 11, False, ""),  # enough, too early
        (taken(20), taken(100), 12, True, ""),
        (taken(0), taken(0), 48, True, ""),
        (taken(0), taken(20), 48, True, ""),  # of which two should have come to it: that happens
        (taken(0), taken(100), 48, True, "none of its requests"),
        (taken(0), taken(100), float("inf"), True, ""),  # the old one is gone
        (taken(5, 3), taken(100), 1, True, "3 of its 8"),
        (taken(5, 2), taken(100), 1, False, ""),
        (taken(98, 2), taken(100), 12, True, ""),  # as many as are allowed
        (taken(97, 3), taken(100), 1, True, "3 of its 100"),
        (taken(50, 50), taken(5, 5), 12, True, ""),
        (taken(20, median_s=0.15), taken(100), 12, True, ""),
        (taken(20, median_s=0.16), taken(100), 12, True, "160 ms"),
        (taken(20, median_s=0.004), taken(100, median_s=0.001), 12, True, ""),  # nobody notices
        (taken(20, median_s=None), taken(100), 12, True, ""),
    ],
)
def test_the_judgement(new: Taken, old: Taken, elapsed_s: float, over: bool, says: str) -> None:
    found = judge(Checks.parse({"canary": 10}, SETTINGS), new, old, elapsed_s=elapsed_s)
    assert found.over is over and (says in found.reason if says else not found.reason)


def test_only_what_came_since_counts() -> None:
    tally = Tally()

    def come(seconds: float, times: int, worked: bool = True) -> None:
        for _ in range(times):
            tally.answered += worked
            tally.failed += not worked
            tally.latest.append((seconds, worked))

    come(9.0, 100)
    come(9.0, 7, worked=False)
    since = Since(tally)
    assert since.taken(tally) == Taken()
    come(0.1, 4)
    assert since.taken(tally) == Taken(answered=4)
    come(0.1, 4)
    come(5.0, 1, worked=False)
    assert since.taken(tally) == Taken(answered=8, failed=1, median_s=0.1)
    come(0.2, 2000)  # more than are remembered
    assert since.taken(tally) == Taken(answered=2008, failed=1, median_s=0.2)
    assert Since(None).taken(tally) == Taken(answered=2108, failed=8, median_s=0.2), "the branch is new"
    assert since.taken(None) == Taken()


def test_a_smoke_set_without_end_is_not_read_to_it() -> None:
    with pytest.raises(CheckError, match="larger than"):
        read_smoke(Path("/dev/zero"))
