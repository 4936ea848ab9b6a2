"""What strangers send: limits, deadlines, framing, and every answer in its turn."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from pressroom.gateway import _http_server
from pressroom.kernel import GatewaySettings
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import Client, Echoes, Script, chat, post, route_to, until

LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def gateway() -> Iterator[GatewayThread]:
    with GatewayThread(settings=GatewaySettings(max_body_bytes=2_000)) as running:
        yield running


def refused(gateway: GatewayThread, data: bytes) -> int:
    """The status of the answer to what is no request; the connection must end after it."""
    with Client(gateway.port) as client:
        client.send(data)
        status, headers, body = client.response()
        assert headers["connection"] == "close" and headers["x-request-id"]
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
        assert client.rest() == b""
        return status


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n folded: x\r\n\r\n", 400),
        (b"GET nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2001\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n7d1\r\n" + b"a" * 2001, 413),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nExpect: magic\r\nContent-Length: 1\r\n\r\n", 417),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000, 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(200)), 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: 1\r\n" * 30_000 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 70_000, 431),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
    ],
)
def test_what_is_refused(gateway: GatewayThread, data: bytes, status: int) -> None:
    assert refused(gateway, data) == status


def test_a_body_too_large_is_answered_while_it_is_still_being_sent(gateway: GatewayThread) -> None:
    with Client(gateway.port) as client:
        client.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8000000\r\n\r\n")
        client.send(b"a" * 8_000_000)  # all of it is taken, and none of it kept
        status, _, body = client.response()
        assert status == 413 and b"2000 bytes" in body


def test_a_client_that_asks_first_is_told_before_it_sends(gateway: GatewayThread) -> None:
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    )
    with Client(gateway.port) as client:
        client.send(head % 2)
        assert client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue"
        assert client.ask(b"{}")[0] == 400
    with Client(gateway.port) as client:
        assert client.ask(head % 9_999)[0] == 413


def test_a_request_in_single_bytes(gateway: GatewayThread) -> None:
    with Client(gateway.port) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for data in post(b'{"model": 1}', "/v1/completions", "X-Long: " + "y" * 50):
            client.send(bytes([data]))
        status, _, body = client.response()
        assert status == 400 and json.loads(body)["error"]["param"] == "model"


def test_chunked_requests(echo: Echoes) -> None:
    body = chat("one two")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    data = head + b"".join(
        b"%x;q=1\r\n%b\r\n" % (len(body[n : n + 9]), body[n : n + 9]) for n in range(0, len(body), 9)
    )
    with GatewayThread(route_to(echo().port)) as gateway, Client(gateway.port) as client:
        for _ in range(2):
            status, _, answer = client.ask(data + b"0\r\nTrailer: x\r\n\r\n")
            assert status == 200 and answer["choices"][0]["message"]["content"] == "one two"


def test_requests_sent_ahead_are_answered_in_order(echo: Echoes) -> None:
    engine = echo(first_delay_s=0.01)
    with GatewayThread(route_to(engine.port)) as gateway, Client(gateway.port) as client:
        client.send(b"".join(post(chat(f"n{n}")) + LIVE for n in range(10)))
        for n in range(10):
            _, _, body = client.response()
            assert json.loads(body)["choices"][0]["message"]["content"] == f"n{n}"
            assert json.loads(client.response()[2]) == {"status": "live"}


def test_ten_thousand_requests_in_one_go(gateway: GatewayThread) -> None:
    with Client(gateway.port) as client, Client(gateway.port) as other:
        client.socket.setblocking(False)
        data, at = LIVE * 10_000, 0
        answers = 0
        while answers < 10_000:
            with contextlib.suppress(BlockingIOError):
                at += client.socket.send(data[at : at + 100_000]) if at < len(data) else 0
            try:
                client.buffer += client.socket.recv(262_144)
            except BlockingIOError:
                assert other.ask(LIVE)[0] == 200  # the others have their turn
            answers += client.buffer.count(b'{"status":"live"}')
            client.buffer = client.buffer[client.buffer.rfind(b'{"status":"live"}') + 17 :]
        assert answers == 10_000


def test_what_is_broken_after_a_good_request_does_not_cost_it_its_answer(echo: Echoes) -> None:
    with (
        GatewayThread(route_to(echo(first_delay_s=0.05).port)) as gateway,
        Client(gateway.port) as client,
    ):
        client.send(post(chat()) + b"\x00garbage\r\n\r\n")
        status, headers, _ = client.response()
        assert status == 200 and headers["connection"] == "close"
        assert client.rest() == b""


@pytest.mark.parametrize(
    "data",
    [
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 23\r\n\r\n" + b'{"model":"m","prompt":1',
        b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n",
        b"\r\nGET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://localhost/nowhere HTTP/1.1\r\nHost: elsewhere\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"GET /x HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    ],
)
def test_the_same_bytes_again_get_the_same_answer(gateway: GatewayThread, data: bytes) -> None:
    """Also where the head is known by then; and one byte more or less is another request."""

    def answers() -> list[object]:
        found: list[object] = []
        with Client(gateway.port) as client:
            for _ in range(3):
                try:
                    client.send(data)
                    status, headers, body = client.response(body=not data.startswith(b"HEAD"))
                except (ConnectionError, AssertionError):
                    break
                found.append((status, sorted(headers.keys()), body))
        return found

    first = answers()
    assert first and answers() == first
    assert all(each == first[0] for each in first)


def test_a_head_that_is_known_with_another_body(echo: Echoes) -> None:
    with GatewayThread(route_to(echo().port)) as gateway, Client(gateway.port) as client:

        def body(text: str) -> bytes:
            return json.dumps({"model": "m", "prompt": text, "max_tokens": 5}).encode()

        def text() -> str:
            status, _, found = client.response()
            assert status == 200
            return str(json.loads(found)["choices"][0]["text"])

        one, two = body("one one"), body("two two")
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(one)
        for sent, said in ((one, "one one"), (two, "two two"), (one, "one one")):
            client.send(head + sent)
            assert text() == said
        client.send(head + one[:7])  # not all of it at once
        client.send(one[7:])
        assert text() == "one one"
        client.send(head + one + head + two)  # and two at once
        assert [text(), text()] == ["one one", "two two"]
        client.send(head)
        client.send(two + head + one[:9])
        assert text() == "two two"
        client.send(one[9:])
        assert text() == "one one"


def test_only_so_many_heads_are_remembered(gateway: GatewayThread) -> None:
    with Client(gateway.port) as client:
        for number in range(600):
            client.send(b"GET /%d HTTP/1.1\r\nHost: localhost\r\nX: %b\r\n\r\n" % (number, b"y" * (number * 5)))
            assert client.response()[0] == 404


def test_http_1_0(echo: Echoes) -> None:
    with GatewayThread(route_to(echo().port)) as gateway:
        with Client(gateway.port) as client:
            client.send(b"GET /health/live HTTP/1.0\r\n\r\n")
            assert client.rest().endswith(b'\r\n\r\n{"status":"live"}')
        with Client(gateway.port) as client:
            client.send(post(chat(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0"))
            head, _, body = client.rest().partition(b"\r\n\r\n")
            assert b"transfer-encoding" not in head and body.startswith(b"data: {") and body.endswith(b"[DONE]\n\n")


def test_head_close_and_other_forms_of_target(gateway: GatewayThread) -> None:
    with Client(gateway.port) as client:
        client.send(LIVE.replace(b"GET", b"HEAD"))
        status, headers, _ = client.response(body=False)
        assert status == 200 and headers["content-length"] == "17" and headers["date"].endswith("GMT")
        assert client.ask(LIVE.replace(b"/health/live", b"/health/live?probe=1"))[0] == 200
        assert client.ask(LIVE.replace(b"/health/live", b"http://127.0.0.1:8080/health/live"))[0] == 200
        assert client.ask(LIVE.replace(b"/health/live", b"http://evil.example/health/live"))[0] == 403
        assert client.ask(b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n")[0] == 404
        client.send(LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert client.response()[1]["connection"] == "close"
        assert client.rest() == b""


def test_an_upgrade_is_answered_in_http_1_1(gateway: GatewayThread) -> None:
    for data in (
        LIVE.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n"),
        LIVE.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nmore"),
    ):
        with Client(gateway.port) as client:
            client.send(data)
            status, headers, _ = client.response()
            assert status == 200 and headers["connection"] == "close"
            assert client.rest() == b""


@pytest.mark.parametrize(
    ("name", "data", "answered"),
    [
        ("_HEAD_S", b"GET / HTTP/1.1\r\nHost: loc", True),
        ("_BODY_S", post(b"{}" + b" " * 100)[:-50], True),
        ("_IDLE_S", b"", False),
    ],
)
def test_whoever_is_too_slow_to_ask(monkeypatch: pytest.MonkeyPatch, name: str, data: bytes, answered: bool) -> None:
    monkeypatch.setattr(_http_server, name, 0.1)
    with GatewayThread() as gateway, Client(gateway.port) as client:
        client.send(data)
        if answered:
            assert client.response()[0] == 408
        assert client.rest() == b""


def test_whoever_never_reads_is_let_go(monkeypatch: pytest.MonkeyPatch, script: Callable[..., Script]) -> None:
    monkeypatch.setattr(_http_server, "_STALL_S", 0.5)
    gone = []

    def flood(connected: socket.socket) -> None:
        connected.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                connected.sendall(b"fde8\r\n" + b"x" * 65_000 + b"\r\n")
        except OSError:
            gone.append(True)

    with GatewayThread(route_to(script(flood).port)) as gateway:
        client = Client(gateway.port, receive_buffer=65_536)
        client.send(post(chat(stream=True)))
        until(lambda: gone)
        client.close()


def test_malformed_requests_by_the_thousand(gateway: GatewayThread) -> None:
    """Whatever is sent: an answer or an end, and the gateway goes on."""
    dice = random.Random(7)
    good = post(chat())
    for number in range(2_000):
        data = bytearray(good)
        for _ in range(dice.randint(1, 6)):
            place = dice.randrange(len(data))
            match dice.randrange(3):
                case 0:
                    data[place] = dice.randrange(256)
                case 1:
                    del data[place : place + dice.randint(1, 20)]
                case _:
                    data[place:place] = dice.randbytes(dice.randint(1, 8))
        with Client(gateway.port) as client:
            try:
                client.send(bytes(data))
                client.socket.shutdown(socket.SHUT_WR)
                answer = client.rest()
            except OSError:
                continue  # it closed while this was being sent
            if answer and not answer.startswith(b"HTTP/1.1 100"):
                assert 400 <= int(answer[9:12]) < 500, (number, bytes(data), answer)
    with Client(gateway.port) as client:
        assert client.ask(LIVE)[0] == 200


# Starting and stopping.


def test_running_requests_finish_when_it_stops(echo: Echoes) -> None:
    engine = echo(tokens=20, delay_s=0.02)
    with GatewayThread(route_to(engine.port)) as gateway, Client(gateway.port) as idle:
        assert idle.ask(LIVE)[0] == 200
        with Client(gateway.port) as client:
            client.send(post(chat(stream=True)))
            client.until(b"data: ")
            gateway.stop(wait=False)
            assert idle.rest() == b""  # whoever asks nothing is let go at once
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", gateway.port))
            assert client.rest().endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert engine.cancelled == 0


def test_requests_that_take_too_long_are_ended_when_it_stops(echo: Echoes) -> None:
    engine = echo(tokens=10_000, delay_s=0.02)
    settings = GatewaySettings(drain_s=0.1)
    with GatewayThread(route_to(engine.port), settings=settings) as gateway, Client(gateway.port) as client:
        client.send(post(chat(stream=True)))
        client.until(b"data: ")
        gateway.stop()
        assert b"the gateway is stopping" in client.rest()
    until(lambda: engine.cancelled == 1)


def test_a_request_being_sent_does_not_hold_up_the_end_for_ever() -> None:
    with GatewayThread(settings=GatewaySettings(drain_s=0.1)) as gateway, Client(gateway.port) as client:
        client.send(LIVE[:20])
        time.sleep(0.05)
        gateway.stop()
        client.rest()
