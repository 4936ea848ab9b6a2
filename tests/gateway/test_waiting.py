"""Requests that wait for an engine: one that starts, wakes, was lost, or never comes."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from typing import Any

from pressroom.gateway import Route
from pressroom.kernel import GatewaySettings
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import Client, Echoes, chat, post, route_to, until

COMING = Route(model="m", ready=False, coming=True, detail="it loads its weights")


def ask_in_thread(gateway: GatewayThread, count: int = 1, **more: Any) -> tuple[list[int], list[threading.Thread]]:
    found: list[int] = []

    def ask() -> None:
        with Client(gateway.port) as client:
            client.send(post(chat(**more)))
            found.append(client.response()[0])

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    return found, threads


def waiting(gateway: GatewayThread) -> int:
    return len(gateway.gateway._house.waiting)


def test_requests_wait_for_an_engine_that_starts(echo: Echoes) -> None:
    with GatewayThread(COMING) as gateway:
        found, threads = ask_in_thread(gateway, 40)
        until(lambda: waiting(gateway) == 40)
        with Client(gateway.port) as client:
            client.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b'pressroom_requests_waiting{model="m"} 40.0' in client.response()[2]
        assert gateway.routes.asked("m") > 0, "whoever lets engines sleep must know that one is wanted"
        gateway.routes.set(route_to(echo().port))
        for thread in threads:
            thread.join(30)
        assert found == [200] * 40 and waiting(gateway) == 0


def test_who_waits_too_long_is_told_why() -> None:
    with GatewayThread(COMING, settings=GatewaySettings(wait_s=0.3)) as gateway, Client(gateway.port) as client:
        status, headers, body = client.ask(post(chat()))
        assert status == 503 and headers["retry-after"] == "2"
        assert body["error"]["code"] == "model_not_ready" and "it loads its weights" in body["error"]["message"]


def test_more_than_may_wait_are_refused_at_once() -> None:
    with GatewayThread(COMING, settings=GatewaySettings(max_waiting=2)) as gateway:
        found, threads = ask_in_thread(gateway, 2)
        until(lambda: waiting(gateway) == 2)
        with Client(gateway.port) as client:
            assert client.ask(post(chat()))[0] == 503
        gateway.routes.remove("m")
        for thread in threads:
            thread.join(30)
        assert found == [404, 404]


def test_one_that_will_not_come_is_not_waited_for() -> None:
    failed = dataclasses.replace(COMING, coming=False, detail="it has not come up five times")
    with GatewayThread(COMING) as gateway:
        found, threads = ask_in_thread(gateway)
        until(lambda: waiting(gateway) == 1)
        gateway.routes.set(failed)
        threads[0].join(30)
        assert found == [503]
        with Client(gateway.port) as client:
            assert client.ask(post(chat()))[0] == 503


def test_a_client_that_leaves_waits_no_more(echo: Echoes) -> None:
    engine = echo()
    with GatewayThread(COMING) as gateway:
        with Client(gateway.port) as client:
            client.send(post(chat()))
            until(lambda: waiting(gateway) == 1)
        until(lambda: waiting(gateway) == 0)
        gateway.routes.set(route_to(engine.port))
        with Client(gateway.port) as client:
            assert client.ask(post(chat()))[0] == 200
        assert engine.requests == 1


def test_a_lost_engine_is_waited_for_and_asked_again(echo: Echoes, script: Any) -> None:
    """Killed with requests on it: those that have nothing yet are answered by the one that comes up in its place."""
    released = threading.Event()

    def die(connected: Any) -> None:
        released.wait(30)

    dying = script(die)
    with GatewayThread(route_to(dying.port)) as gateway:
        found, threads = ask_in_thread(gateway, 5)
        until(lambda: len(dying.requests) == 5)
        gateway.routes.set(dataclasses.replace(COMING, detail="killed by signal 9"))
        released.set()
        until(lambda: waiting(gateway) == 5)
        time.sleep(0.3)
        assert not found
        gateway.routes.set(route_to(echo().port))
        for thread in threads:
            thread.join(30)
        assert found == [200] * 5
        assert gateway.gateway.metrics.of("m").retries == 5


def test_another_copy_takes_over_at_once(echo: Echoes, script: Any) -> None:
    engine, dead = echo(), script(lambda connected: None)
    with GatewayThread() as gateway, Client(gateway.port) as client:
        gateway.routes.put("m", [route_to(dead.port), route_to(engine.port)])
        for _ in range(4):
            assert client.ask(post(chat()))[0] == 200
        assert engine.requests == 4


def test_a_gateway_that_stops_lets_nobody_wait() -> None:
    gateway = GatewayThread(COMING, settings=GatewaySettings(drain_s=0.1))
    with gateway:
        found, threads = ask_in_thread(gateway)
        until(lambda: waiting(gateway) == 1)
    threads[0].join(30)
    assert found == [502]


def test_several_that_wait_too_long_are_refused_once() -> None:
    with GatewayThread(COMING, settings=GatewaySettings(wait_s=0.3)) as gateway, Client(gateway.port) as client:
        assert client.ask(post(chat(n=4)))[0] == 503
        texts = {"inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [3], "data": ["a", "b", "c"]}]}
        status, _, body = client.ask(post(json.dumps(texts).encode(), "/v2/models/m/infer"))
        assert status == 503 and "error" in body
        assert client.ask(post(chat()))[0] == 503, "whoever waits next is still looked after"
        assert gateway.gateway.metrics.of("m").in_flight == 0


def test_a_sleeper_is_woken_by_those_who_do_not_wait() -> None:
    with GatewayThread(COMING, settings=GatewaySettings(wait_s=0)) as gateway, Client(gateway.port) as client:
        assert client.ask(post(chat()))[0] == 503
        assert gateway.routes.asked("m") > 0
