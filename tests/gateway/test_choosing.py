"""Which of several engines gets a request: the one measured best at the load, then the one that knows its beginning."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pressroom.gateway import Route
from pressroom.gateway._choosing import Chooser, prefixes, rate_at
from pressroom.gateway.routes import Lane, Load

LONG = "Once upon a time there was a printer who set every letter by hand. " * 40
SPEEDS = {
    "small": ((1, 120.0), (4, 156.0), (16, 185.0), (64, 199.0)),
    "large": ((1, 22.0), (4, 96.0), (16, 324.0), (64, 729.0)),
}


def lane(engine: str, port: int, running: int = 0) -> Lane:
    load = Load()
    load.running = running
    return Lane(Route(model="m", host="127.0.0.1", port=port, engine=engine), load)


def chat(*texts: str) -> dict[str, Any]:
    roles = ("system", "user", "assistant")
    return {"messages": [{"role": roles[n % 3], "content": text} for n, text in enumerate(texts)]}


def test_the_rate_between_two_measured_loads() -> None:
    speeds = SPEEDS["small"]
    assert rate_at(speeds, 1) == 120.0 and rate_at(speeds, 64) == 199.0 and rate_at(speeds, 1000) == 199.0
    assert rate_at(speeds, 0.5) == 120.0
    assert rate_at(speeds, 2) == (120 + 156) / 2  # two lies half-way from one to four on a logarithmic scale


def test_the_load_decides_the_kind_of_engine() -> None:
    chooser = Chooser()
    chooser.speeds = dict(SPEEDS)
    small, large = lane("small", 1), lane("large", 2)
    assert chooser.choose([small, large], chat("hi"), 0.0) is small
    small.load.running = 3
    assert chooser.choose([small, large], chat("hi"), 0.1) is small
    small.load.running = 15
    assert chooser.choose([small, large], chat("hi"), 0.2) is large, "a load that rises is believed at once"
    small.load.running = 0
    assert chooser.choose([small, large], chat("hi"), 0.3) is large, "a short pause is not a new load"
    assert chooser.choose([small, large], chat("hi"), 30.0) is small


def test_a_difference_within_the_error_of_measurement_changes_nothing() -> None:
    chooser = Chooser()
    chooser.speeds = {"small": ((1, 100.0), (64, 100.0)), "large": ((1, 99.0), (64, 104.0))}
    small, large = lane("small", 1), lane("large", 2)
    assert chooser.choose([small, large], chat("hi"), 0.0) is small
    small.load.running = 63
    assert chooser.choose([small, large], chat("hi"), 0.1) is small


def test_one_that_was_not_measured_is_chosen_where_it_is_alone() -> None:
    chooser = Chooser()
    chooser.speeds = {"small": SPEEDS["small"]}
    large = lane("large", 2)
    assert chooser.choose([large], chat("hi"), 0.0) is large
    small = lane("small", 1)
    assert chooser.choose([small, large], chat("hi"), 0.0) is small


def test_equal_beginnings_go_to_the_same_replica() -> None:
    chooser = Chooser()
    lanes = [lane("e", port) for port in range(1, 5)]
    first = chooser.choose(lanes, chat(LONG, "one"), 0.0)
    lanes[0].load.used = 5.0  # the others are less used now
    for question in ("two", "three", LONG):
        assert chooser.choose(lanes, chat(LONG, question), 1.0) is first
    follow_up = chat(LONG, "one", "an answer", "and then?")
    assert chooser.choose(lanes, follow_up, 2.0) is first


def test_a_busy_replica_is_not_waited_for() -> None:
    chooser = Chooser()
    lanes = [lane("e", 1), lane("e", 2)]
    first = chooser.choose(lanes, chat(LONG), 0.0)
    first.load.running = 3
    second = chooser.choose(lanes, chat(LONG), 0.0)
    assert second is not first
    first.load.running = 0
    assert chooser.choose(lanes, chat(LONG), 0.0) is second, "the one that has worked on it last"


def test_short_prompts_go_where_least_runs() -> None:
    chooser = Chooser()
    lanes = [lane("e", 1, running=2), lane("e", 2, running=1)]
    assert chooser.choose(lanes, chat("hi"), 0.0) is lanes[1]
    assert not list(prefixes(chat("hi"))) and not list(prefixes({"prompt": "short"}))


@given(st.text(min_size=300, max_size=3000), st.text(max_size=3000), st.text(max_size=600))
def test_what_begins_alike_shares_its_first_hashes(begin: str, one: str, other: str) -> None:
    ours, theirs = list(prefixes({"prompt": begin + one})), list(prefixes({"prompt": begin + other}))
    shared = sum(length <= len(begin) for length in (256, 512, 1024, 2048))
    assert ours[:shared] == theirs[:shared] and shared >= 1


def test_what_is_remembered_is_bounded(monkeypatch: Any) -> None:
    from pressroom.gateway import _choosing

    monkeypatch.setattr(_choosing, "_REMEMBERED", 10)
    chooser = Chooser()
    lanes = [lane("e", 1), lane("e", 2)]
    for number in range(50):
        chooser.choose(lanes, {"prompt": f"{number} {LONG}"}, 0.0)
    assert len(chooser._seen) == 10
