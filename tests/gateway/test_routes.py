"""The table of routes: whole at every moment, and honest about what runs where."""

from __future__ import annotations

import sys
import threading

from pressroom.gateway import Route, RouteTable
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import Client, Echoes, chat, post, route_to, until


def test_set_get_remove() -> None:
    table = RouteTable()
    a, b = Route(model="a", port=1), Route(model="b", port=2)
    table.set(b)
    table.set(a)
    assert table.get("a") == a and table.all() == [a, b] and table.get("c") is None
    newer = Route(model="a", port=3)
    table.set(newer)
    assert table.get("a") == newer
    table.remove("a")
    table.remove("a")
    assert table.all() == [b]


def test_what_runs_is_counted_for_its_own_endpoint() -> None:
    table = RouteTable()
    old, new = Route(model="a", port=1), Route(model="a", port=2)
    table.set(old)
    lane = table.lane("a")
    assert lane is not None and table.enter(lane)
    table.set(new)
    assert table.in_flight(old) == 1 and table.in_flight(new) == 0
    assert not table.enter(lane)  # it was replaced: look again
    assert table.in_flight(old) == 1
    table.set(Route(model="a", port=1, detail="the same endpoint"))
    assert table.in_flight(old) == 1
    lane.load.running -= 1
    assert table.in_flight(old) == 0
    table.remove("a")
    assert table.in_flight(old) == 0 and not table._loads.keys()


def test_nothing_starts_on_a_route_after_it_was_replaced() -> None:
    """What a drain relies on: once the table has another route and nothing runs on the old one, nothing ever will."""
    table = RouteTable()
    over = threading.Event()
    entered: list[int] = []
    stopped: set[int] = set()
    late: list[int] = []

    def requests() -> None:
        while not over.is_set():
            lane = table.lane("a")
            if lane is not None and table.enter(lane):
                if lane.route.port in stopped:
                    late.append(lane.route.port)
                entered.append(lane.route.port)
                lane.load.running -= 1

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=requests)
    try:
        table.set(Route(model="a", port=1))
        thread.start()
        for port in range(2, 2_000):
            old = table.get("a")
            assert old is not None
            table.set(Route(model="a", port=port))
            while table.in_flight(old):
                pass
            stopped.add(old.port)
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(before)
    assert entered and not late


def test_a_new_endpoint_takes_over_while_the_old_one_finishes(echo: Echoes) -> None:
    first, second = echo(tokens=50, delay_s=0.01), echo(text="new")
    old, new = route_to(first.port), route_to(second.port)
    with GatewayThread(old) as gateway, Client(gateway.port) as running, Client(gateway.port) as client:
        running.send(post(chat(stream=True)))
        running.until(b"data: ")
        gateway.routes.set(new)
        assert client.ask(post(chat()))[2]["choices"][0]["message"]["content"] == "new"
        assert gateway.routes.in_flight(old) == 1
        assert running.until(b"0\r\n\r\n").endswith(b"[DONE]\n\n\r\n")
        until(lambda: gateway.routes.in_flight(old) == 0)
    assert first.requests == 1 and first.cancelled == 0
