"""Policies in front of real engines, over HTTP."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pressroom.gateway.policy import Policy
from pressroom.gateway.routes import Branch
from pressroom.testing.gateway import GatewayThread
from tests.gateway.engines_and_clients import HEAD, STREAM, Client, Echoes, Script, chat, chunk, post, route_to, until

Scripts = Callable[..., Script]


@pytest.fixture
def gateway(echo: Echoes, script: Scripts) -> Iterator[GatewayThread]:
    # After the engines, so that it ends before them.
    with GatewayThread() as served:
        yield served


def serve(gateway: GatewayThread, policy: dict[str, Any], **ports: int) -> None:
    """Branches at these ports, the first with all the weight; one called `vendor` is one."""
    vendors = [name for name in ports if name == "vendor"]
    branches = [
        Branch(name=name, routes=(route_to(port, branch=name, elsewhere=name in vendors),), weight=0 if number else 1)
        for number, (name, port) in enumerate(ports.items())
    ]
    parsed = Policy.parse(policy, list(ports), [name for name in ports if name not in vendors])
    gateway.routes.put_branches("m", branches, policy=parsed)


def still(gateway: GatewayThread) -> None:
    """No request is under way, in the policy or on any engine."""
    steerings = gateway.gateway.dispatcher.steerings

    def counts() -> int:
        running = sum(gateway.routes.in_flight(route) for route in gateway.routes.every())
        return running + steerings.under_way + steerings.shadows_under_way

    until(lambda: gateway.on_loop(counts) == 0)


def marks(gateway: GatewayThread) -> dict[str, Any]:
    return gateway.on_loop(gateway.gateway.dispatcher.steerings.snapshot)["m"]


def refusing(status: int, body: bytes = b"{}") -> Callable[[socket.socket], None]:
    answer = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )
    return lambda connected: connected.sendall(answer)


def said(text: str) -> bytes:
    body = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}).encode()
    return HEAD % len(body) + body


def test_the_next_one_answers(gateway: GatewayThread, echo: Echoes, script: Scripts) -> None:
    bad = script(refusing(500))
    serve(gateway, {"fallback": {"order": ["good"]}}, bad=bad.port, good=echo().port)
    with Client(gateway.port) as client:
        for stream in (False, True):
            client.send(post(chat("one two", stream=stream)))
            status, _, body = client.response()
            assert status == 200 and b"two" in body
    assert marks(gateway)["bad"]["failed"] == 2 and marks(gateway)["good"]["fallbacks"] == 2
    still(gateway)


def test_it_is_asked_again(gateway: GatewayThread, script: Scripts) -> None:
    flaky = script(refusing(500), refusing(503), lambda connected: connected.sendall(said("at last")))
    serve(gateway, {"retry": {"attempts": 2, "backoff_s": 0.01}}, a=flaky.port)
    with Client(gateway.port) as client:
        assert client.ask(post(chat()))[2]["choices"][0]["message"]["content"] == "at last"
    assert len(flaky.requests) == 3 and marks(gateway)["a"]["retries"] == 2
    still(gateway)


def test_what_has_begun_is_not_asked_again(gateway: GatewayThread, echo: Echoes, script: Scripts) -> None:
    def cut(connected: socket.socket) -> None:
        connected.sendall(STREAM + chunk(b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'))

    engine, other = script(cut), echo()
    serve(
        gateway, {"fallback": {"order": ["b"]}, "retry": {"attempts": 2, "backoff_s": 0}}, a=engine.port, b=other.port
    )
    with Client(gateway.port) as client:
        client.send(post(chat(stream=True)))
        status, _, body = client.response()
    assert status == 200 and b'"error"' in body and b"[DONE]" not in body
    assert len(engine.requests) == 1 and other.requests == 0
    still(gateway)


def test_a_hedge_answers_and_the_slow_one_stops(gateway: GatewayThread, echo: Echoes) -> None:
    slow, fast = echo(first_delay_s=1_000), echo()
    serve(gateway, {"fallback": {"order": ["b"]}, "hedge": {"after_s": 0.05}}, a=slow.port, b=fast.port)
    with Client(gateway.port) as client:
        assert client.ask(post(chat()))[0] == 200
    until(lambda: slow.requests == 1 and slow.active == 0)
    assert marks(gateway)["b"]["hedges"] == 1 and marks(gateway)["b"]["won"] == 1
    still(gateway)


@pytest.mark.parametrize("stream", [False, True])
def test_limits(gateway: GatewayThread, echo: Echoes, stream: bool) -> None:
    slow = echo(first_delay_s=1_000)
    with Client(gateway.port) as client:
        serve(gateway, {"limits": {"first_token_s": 0.05}}, a=slow.port)
        status, _, body = client.ask(post(chat(stream=stream)))
        assert (status, body["error"]["code"]) == (504, "engine_timeout")
        trickling = echo(delay_s=0.05, tokens=10_000)
        serve(gateway, {"limits": {"total_s": 0.3}}, a=trickling.port)
        client.send(post(chat(stream=stream)))
        status, _, answer = client.response()
        assert status == (200 if stream else 504)
        last = answer.strip().split(b"\n\n")[-1].removeprefix(b"data: ")
        assert json.loads(last)["error"]["code"] == "engine_timeout"
    until(lambda: not slow.active and not trickling.active)
    still(gateway)


def test_a_client_that_leaves_stops_all_of_it(gateway: GatewayThread, echo: Echoes) -> None:
    engines = [echo(first_delay_s=1_000) for _ in range(3)]
    policy = {"hedge": {"after_s": 0.02}, "fallback": {"order": ["b"]}, "shadow": {"branch": "c", "share": 1}}
    serve(gateway, policy, a=engines[0].port, b=engines[1].port, c=engines[2].port)
    with Client(gateway.port) as client:
        client.send(post(chat(stream=True)))
        until(lambda: all(engine.active for engine in engines))
    until(lambda: not any(engine.active for engine in engines))
    still(gateway)


def test_a_copy_is_compared_and_not_sent(gateway: GatewayThread, echo: Echoes, script: Scripts) -> None:
    other = script(lambda connected: connected.sendall(said("something else")))
    serve(gateway, {"shadow": {"branch": "new", "share": 1}}, old=echo().port, new=other.port)
    with Client(gateway.port) as client:
        answer = client.ask(post(chat("one two")))[2]
    assert answer["choices"][0]["message"]["content"] == "one two"
    until(lambda: marks(gateway)["new"]["compared"] == 1)
    (comparison,) = gateway.on_loop(gateway.gateway.dispatcher.steerings.compared)["m"]
    assert not comparison["equal"] and comparison["length_ratio"] == 2 and comparison["against"] == "old"
    still(gateway)


PRIVATE = "Please write to maria.meier@posteo.de about it."


def test_a_vendor_never_sees_personal_data(gateway: GatewayThread, echo: Echoes, script: Scripts) -> None:
    vendor = script(lambda connected: connected.sendall(said("from the vendor")))
    policy: dict[str, Any] = {
        "fallback": {"order": ["vendor", "own"]},
        "hedge": {"after_s": 0.02},
        "retry": {"attempts": 1, "backoff_s": 0},
        "shadow": {"branch": "vendor", "share": 1},
        "limits": {"first_token_s": 0.2},
    }
    broken = script(refusing(500))
    with Client(gateway.port) as client:
        serve(gateway, policy, vendor=vendor.port, own=echo().port)
        for path, body in (
            ("/v1/chat/completions", chat(PRIVATE)),
            ("/v1/completions", json.dumps({"model": "m", "prompt": ["a", PRIVATE]}).encode()),
            ("/v2/models/m/generate", json.dumps({"text_input": PRIVATE}).encode()),
        ):
            client.send(post(body, path))
            assert client.response()[0] == 200
        assert client.ask(post(chat("hello")))[2]["choices"][0]["message"]["content"] == "from the vendor"
        serve(gateway, policy, vendor=vendor.port, own=broken.port)
        assert client.ask(post(chat(PRIVATE)))[0] == 502
        serve(gateway, policy, vendor=vendor.port, own=echo(first_delay_s=1_000).port)
        assert client.ask(post(chat(PRIVATE)))[0] == 504
        rule = {"rule": [{"when": {"tag": ["public"]}, "only": "vendor"}]}
        serve(gateway, policy | rule, vendor=vendor.port, own=echo().port)
        status, _, answer = client.ask(post(chat(PRIVATE), "/v1/chat/completions", "pressroom-tag: public"))
        assert (status, answer["error"]["code"]) == (400, "content_not_allowed")
    still(gateway)
    assert vendor.requests and not [request for request in vendor.requests if b"posteo" in request]


def test_nor_does_one_that_took_the_place_of_a_branch(gateway: GatewayThread, echo: Echoes, script: Scripts) -> None:
    vendor = script(lambda connected: connected.sendall(said("from the vendor")))

    def then_changes(connected: socket.socket) -> None:
        # While the pause before the retry lasts, the branch that was of one's own becomes a vendor's.
        route = route_to(vendor.port, branch="own", elsewhere=True)
        gateway.routes.put_branches("m", [Branch(name="own", routes=(route,))])
        refusing(500)(connected)

    own = script(then_changes)
    serve(gateway, {"retry": {"attempts": 2, "backoff_s": 0.05}}, own=own.port, vendor=vendor.port)
    with Client(gateway.port) as client:
        assert client.ask(post(chat(PRIVATE)))[0] == 503
    assert not vendor.requests
    still(gateway)
