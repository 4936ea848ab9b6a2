"""The soak judges right: it finds what grows, and does not take noise or a burst for growth."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

_BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(_BENCHMARKS))
    yield
    for name in [name for name in sys.modules if name.startswith(("_soak", "soak"))]:
        del sys.modules[name]


def twenty_minutes(grows: float, *, bursts: bool = False) -> list[tuple[float, float]]:
    """Memory in MB, every second: it warms up, is not quite still, and grows by so much in ten minutes."""
    chance = random.Random(5)
    found = []
    for second in range(1_200):
        burst = 30.0 if bursts and second % 97 < 3 else 0.0
        value = 80 - 20 * 0.99**second + grows * second / 600 + chance.gauss(0, 0.4) + burst
        found.append((float(second), value))
    return found


@pytest.mark.parametrize("bursts", [False, True])
@pytest.mark.parametrize("grows", [0.0, 0.5, 2.0, 10.0])
def test_what_grows_is_found(grows: float, bursts: bool) -> None:
    from _soak_trend import trend

    line = trend(twenty_minutes(grows, bursts=bursts))
    assert abs(line.growth - grows) <= max(line.noise, 0.3)
    assert (line.surely > 1.0) is (grows > 1.0)
    assert 595 < line.start < 605 and line.end == 1_199


def test_the_picture_is_one() -> None:
    from _soak_trend import draw, trend

    points = twenty_minutes(2.0)
    ElementTree.fromstring(draw(points, trend(points), [(x, 40.0) for x, _ in points], "told <here>"))


def sample(**more: Any) -> dict[str, Any]:
    return {"rss": 1 << 26, "descriptors": 30, "threads": 9, "tasks": 4, "objects": 100, "kinds": {"dict": 5}, **more}


@pytest.mark.parametrize(
    ("grows", "after", "log", "calm", "says"),
    [
        (0.0, {}, "", True, []),
        (3.0, {"kinds": {"dict": 50}}, "", True, ["memory grows"]),
        (0.0, {"descriptors": 60}, "", True, ["60 descriptors"]),
        (0.0, {"tasks": 30}, "", True, ["30 tasks"]),
        (0.0, {}, "Traceback (most recent call last)", True, ["log"]),
        (0.0, {}, "", False, ["still counted as running"]),
    ],
)
def test_what_makes_a_failure(grows: float, after: dict[str, Any], log: str, calm: bool, says: list[str]) -> None:
    import soak
    from _soak_load import Tally
    from _soak_trend import trend

    lines = trend(twenty_minutes(grows)), trend([(float(x), 30.0) for x in range(1_200)])
    found = list(soak.faults(20.0, *lines, sample(), sample(**after), Tally(), log, calm=calm))
    assert len(found) == len(says) and all(part in each for part, each in zip(says, found, strict=True))
    tally = Tally()
    tally.complain("chat", "status 500")
    assert "1 answers were wrong" in list(soak.faults(20.0, *lines, sample(), sample(), tally, "", calm=True))


@pytest.mark.slow
def test_the_quick_soak() -> None:
    done = subprocess.run(
        [sys.executable, str(_BENCHMARKS / "soak.py"), "--quick"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["visits"] > 200 and told["wrong"] == 0 and told["engines_ended"] >= 2 and told["failures"] == []
