"""Which of several engines gets a request: the one measured best at the load, then the one that knows its beginning."""

from __future__ import annotations

import threading
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pressroom.gateway import Route
from pressroom.gateway._choosing import Chooser, prefixes, rate_at
from pressroom.gateway.routes import Lane, Load
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import Client, Echoes, post
from .engines_and_clients import chat as request

LONG = "Once upon a time there was a printer who set every letter by hand. " * 40
SPEEDS = {
    "small": ((1, 120.0), (4, 156.0), (16, 185.0), (64, 199.0)),
    "large": ((1, 22.0), (4, 96.0), (16, 324.0), (64, 729.0)),
}


def lane(engine: str, port: int, running: int = 0) -> Lane:
    load = Load()
    load.running = running
    return Lane(Route(model="m", host="127.0.0.1", port=port, engine=engine), load)


def measured() -> tuple[Chooser, Lane, Lane]:
    """One that knows what both kinds give, and an idle lane of each."""
    chooser = Chooser()
    chooser.speeds = dict(SPEEDS)
    return chooser, lane("small", 1), lane("large", 2)


def chat(*texts: str) -> dict[str, Any]:
    roles = ("system", "user", "assistant")
    return {"messages": [{"role": roles[n % 3], "content": text} for n, text in enumerate(texts)]}


def test_the_rate_between_two_measured_loads() -> None:
    speeds = SPEEDS["small"]
    assert rate_at(speeds, 1) == 120.0 and rate_at(speeds, 64) == 199.0 and rate_at(speeds, 1000) == 199.0
    assert rate_at(speeds, 0.5) == 120.0
    assert rate_at(speeds, 2) == (120 + 156) / 2  # two lies half-way from one to four on a logarithmic scale


def test_the_load_decides_the_kind_of_engine() -> None:
    chooser, small, large = measured()
    assert chooser.choose([small, large], chat("hi"), 0.0) is small
    small.load.running = 3
    assert chooser.choose([small, large], chat("hi"), 0.1) is small
    small.load.running = 0
    assert chooser.choose([small, large], chat("hi"), 0.2, waiting=15) is large, "a load that rises is believed at once"
    assert chooser.choose([small, large], chat("hi"), 0.3) is large, "a short pause is not a new load"
    assert chooser.choose([small, large], chat("hi"), 30.0) is small


def test_a_load_does_not_fall_while_nothing_new_comes() -> None:
    """Sixteen long answers that end together, and the next sixteen right after them."""
    chooser, small, large = measured()
    assert chooser.choose([small, large], chat("hi"), 0.0, waiting=15) is large
    for left in range(15, -1, -1):
        large.load.running = left
        chooser.ended([small, large], 20.0 + (15 - left) / 100)
    assert chooser.choose([small, large], chat("hi"), 20.2) is large
    assert chooser.choose([small, large], chat("hi"), 30.0) is small, "it has fallen since they ended"


def test_a_rising_load_waits_for_what_runs_and_moves_what_has_not_begun() -> None:
    chooser, small, large = measured()
    assert chooser.choose([small, large], chat("hi"), 0.0) is small
    small.load.running = 12
    assert chooser.choose([small, large], chat("hi"), 0.1) is None, "two at once on the same cores help nobody"
    assert chooser.moving and chooser.others([small, large]) == [small]
    small.load.running = 1
    assert chooser.choose([small, large], chat("hi"), 1.0, waiting=12) is None
    small.load.running = 0
    assert chooser.choose([small, large], chat("hi"), 1.1, waiting=12) is large
    small.load.running, large.load.running = 1, 12  # one that takes long
    assert chooser.choose([small, large], chat("hi"), 1.2) is large


def test_a_long_answer_holds_up_a_change_for_some_seconds_only() -> None:
    chooser, small, large = measured()
    assert chooser.choose([small, large], chat("hi"), 0.0) is small
    small.load.running = 1
    assert chooser.choose([small, large], chat("hi"), 1.0, waiting=20) is None
    assert chooser.choose([small, large], chat("hi"), 5.9, waiting=20) is None
    assert chooser.choose([small, large], chat("hi"), 6.1, waiting=20) is large


def test_a_falling_load_goes_on_where_the_others_are_at_first() -> None:
    chooser, small, large = measured()
    assert chooser.choose([small, large], chat("hi"), 0.0, waiting=60) is large
    large.load.running = 3
    assert chooser.choose([small, large], chat("hi"), 10.0) is large and not chooser.moving
    assert chooser.choose([small, large], chat("hi"), 11.9) is large
    assert chooser.choose([small, large], chat("hi"), 12.1) is None, "a load that stays low waits for the change"
    large.load.running = 0
    assert chooser.choose([small, large], chat("hi"), 12.5) is small


def test_a_difference_within_the_error_of_measurement_changes_nothing() -> None:
    chooser = Chooser()
    chooser.speeds = {"small": ((1, 100.0), (64, 100.0)), "large": ((1, 99.0), (64, 104.0))}
    small, large = lane("small", 1), lane("large", 2)
    assert chooser.choose([small, large], chat("hi"), 0.0) is small
    small.load.running = 63
    assert chooser.choose([small, large], chat("hi"), 0.1) is small, "and waits for nothing"


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
    assert first is not None
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


def test_through_the_gateway_a_burst_is_moved_and_all_are_answered(echo: Echoes) -> None:
    """Twelve clients at once: the first few go to the engine for few, and are taken from it again."""
    slow, batching = echo(first_delay_s=2.0, tokens=2), echo(tokens=2)
    routes = [
        Route(model="m", host="127.0.0.1", port=engine.port, engine=kind)
        for engine, kind in ((slow, "small"), (batching, "large"))
    ]
    found: list[int] = []

    def ask(gateway: GatewayThread) -> None:
        with Client(gateway.port) as client:
            client.send(post(request(stream=True)))
            found.append(client.response()[0])

    with GatewayThread() as gateway:
        gateway.routes.put("m", routes, speeds=SPEEDS)
        threads = [threading.Thread(target=ask, args=(gateway,)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert found == [200] * 12
        assert all(gateway.routes.in_flight(route) == 0 for route in routes)
    assert slow.cancelled > 0 and batching.requests == 12
