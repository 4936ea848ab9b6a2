"""Vendors on bad days: what is tried again, what is said, what is not paid for."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from typing import Any

import pytest

from pressroom.engines._vendor.breaker import Breaker
from pressroom.engines._vendor.events import EventReader
from pressroom.engines._vendor.refusals import Refusal, retry_after

from .test_vendor_openai import CHAT, USUAL, chat, piece, streamed, whole
from .vendor_servers import Answer, ScriptedVendor, ask, events, get, served, stream, until

OK = Answer(body=whole())


def failing(status: int, message: str = "bad luck", *, headers: dict[str, str] | None = None, **error: Any) -> Answer:
    return Answer(status=status, body={"error": {"message": message, **error}}, headers=headers or {})


# What may pass is tried again.


@pytest.mark.parametrize(
    "fault",
    [
        failing(500),
        failing(503),
        failing(529),
        failing(408),
        failing(429, headers={"Retry-After": "0"}),
        Answer(pieces=["cut"]),
        Answer(pieces=[b'{"choices"', "cut"], headers={"Content-Length": "1000"}),
        Answer(body={"error": {"message": "dressed up", "code": 500}}),
        Answer(body={"error": "dressed up"}),
        Answer(status=502, body=b"<html>a proxy in between</html>"),
    ],
    ids=lambda fault: str(fault.status),
)
def test_what_may_pass_is_tried_again(fault: Answer) -> None:
    with ScriptedVendor(fault, OK) as vendor, served(vendor.url) as url:
        status, answer, _ = ask(url, CHAT, chat())
    assert status == 200 and answer["choices"][0]["message"]["content"] == "hello" and len(vendor.asked) == 2


@pytest.mark.parametrize(
    "fault",
    [
        failing(500),
        Answer(pieces=["cut"]),
        Answer(stream=True, pieces=["cut"]),
        Answer(stream=True, pieces=events({"error": {"message": "dressed up"}})),
        Answer(stream=True, pieces=[b": only a comment\n\n"]),
    ],
)
def test_a_stream_is_tried_again_until_its_first_piece(fault: Answer) -> None:
    with ScriptedVendor(fault, streamed(*USUAL)) as vendor, served(vendor.url) as url:
        chunks = stream(url, CHAT, chat())
    assert chunks[-1] == "[DONE]" and len(vendor.asked) == 2


def test_tries_end() -> None:
    with ScriptedVendor(failing(500, "out of order")) as vendor, served(vendor.url, retries=1) as url:
        status, answer, _ = ask(url, CHAT, chat())
    assert status == 502 and answer["error"]["code"] == "vendor_error" and "out of order" in answer["error"]["message"]
    assert len(vendor.asked) == 2


def test_the_pause_is_what_the_vendor_asks_for() -> None:
    with ScriptedVendor(failing(429, headers={"retry-after-ms": "900"}), OK) as vendor, served(vendor.url) as url:
        began = time.monotonic()
        assert ask(url, CHAT, chat())[0] == 200
    assert time.monotonic() - began >= 0.9 and len(vendor.asked) == 2


def test_a_long_pause_is_the_clients_to_wait() -> None:
    with ScriptedVendor(failing(429, "slow down", headers={"Retry-After": "77"})) as vendor, served(vendor.url) as url:
        status, answer, headers = ask(url, CHAT, chat())
    assert status == 429 and headers["retry-after"] == "77" and len(vendor.asked) == 1
    assert answer["error"]["type"] == "rate_limit_error" and "slow down" in answer["error"]["message"]


def test_an_empty_account_is_not_tried_again() -> None:
    with ScriptedVendor(failing(429, "pay", code="insufficient_quota")) as vendor, served(vendor.url) as url:
        assert ask(url, CHAT, chat())[1]["error"]["code"] == "insufficient_quota"
    assert len(vendor.asked) == 1


# What will not pass is said.


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (failing(400, "no such thing", param="tools", code="invalid_value"), 400, "invalid_value"),
        (failing(400, "This model's maximum context length is 8 tokens"), 400, "context_length_exceeded"),
        (failing(413, "too large"), 413, None),
        (failing(401, "Incorrect API key provided: sk-abcdefgh"), 502, "vendor_refused_key"),
        (failing(403, "not allowed"), 502, "vendor_refused_key"),
        (failing(402, "pay"), 502, "vendor_unpaid"),
        (failing(404, "no such model"), 502, "vendor_not_found"),
        (Answer(status=301, body=b"", headers={"Location": "http://127.0.0.1:1/"}), 502, "vendor_not_found"),
        (Answer(status=418, body=b"teapot"), 502, "vendor_error"),
        (Answer(body=b"<html>welcome</html>"), 502, "vendor_malformed"),
        (Answer(body=[1]), 502, "vendor_malformed"),
        (Answer(body={"choices": 7}), 502, "vendor_malformed"),
        (Answer(body={"error": {"message": "bad", "type": "invalid_request_error"}}), 400, None),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_will_not_pass_is_said_once(fault: Answer, status: int, code: str | None, streaming: bool) -> None:
    with ScriptedVendor(fault) as vendor, served(vendor.url) as url:
        found, answer, _ = ask(url, CHAT, chat(stream=streaming))
    assert found == status and answer["error"]["code"] == code and len(vendor.asked) == 1
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == ("invalid_request_error" if status < 500 else "server_error")
    assert "sk-abc" not in answer["error"]["message"]


@pytest.mark.parametrize(
    "pieces",
    [
        [*events(USUAL[1]), "cut"],
        events(USUAL[1]),
        events(USUAL[1], b"{broken"),
        events(USUAL[1], {"error": {"message": "overloaded", "type": "server_error"}}),
        [*events(USUAL[1]), b"data: " + b"x" * (9 << 20)],
        events(USUAL[1], [1]),
        events(USUAL[1], {"choices": [7]}),
    ],
)
def test_a_stream_that_breaks_off_ends_with_an_error(pieces: list[Any]) -> None:
    with ScriptedVendor(Answer(stream=True, pieces=pieces)) as vendor, served(vendor.url) as url:
        first, last = stream(url, CHAT, chat())
        assert ask(url, "/v1/chat/completions", chat(messages=[]))[0] == 400, "and it lives"
    assert first["choices"][0]["delta"]["content"] == "hel" and "vendor" in last["error"]["code"]
    assert len(vendor.asked) == 1


def test_a_vendor_that_is_not_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with served(f"http://127.0.0.1:{port}/v1", retries=1) as url:
        status, answer, headers = ask(url, CHAT, chat())
    assert status == 503 and answer["error"]["code"] == "vendor_unreachable" and headers["retry-after"] == "1"


# Time.


@pytest.mark.parametrize("streaming", [False, True])
def test_a_vendor_that_hangs_is_left_at_the_deadline(streaming: bool) -> None:
    with ScriptedVendor(Answer(pieces=["hang"])) as vendor, served(vendor.url, timeout_s=0.3) as url:
        status, answer, _ = ask(url, CHAT, chat(stream=streaming))
        assert status == 504 and answer["error"]["code"] == "vendor_timeout" and len(vendor.asked) == 1
        assert vendor.left.wait(60)


@pytest.mark.parametrize("options", [{"silence_s": 0.2}, {"timeout_s": 0.4}])
def test_a_stream_that_falls_silent_ends_with_an_error(options: dict[str, float]) -> None:
    answer = Answer(stream=True, pieces=[*events(USUAL[1]), "hang"])
    with ScriptedVendor(answer) as vendor, served(vendor.url, **options) as url:
        assert stream(url, CHAT, chat())[-1]["error"]["code"] == "vendor_timeout"
        assert vendor.left.wait(60)


def test_a_slow_stream_is_not_silent() -> None:
    pieces: list[Any] = [part for event in events(*USUAL, b"[DONE]") for part in (0.1, event)]
    with ScriptedVendor(Answer(stream=True, pieces=pieces)) as vendor, served(vendor.url, silence_s=5.0) as url:
        assert stream(url, CHAT, chat())[-1] == "[DONE]"


@pytest.mark.parametrize(("streaming", "began"), [(False, False), (True, False), (True, True)])
def test_a_client_that_leaves_ends_the_vendors_work(streaming: bool, began: bool) -> None:
    pieces = [*events(USUAL[1]), "hang"] if began else ["hang"]
    with ScriptedVendor(Answer(stream=True, pieces=pieces)) as vendor, served(vendor.url) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        sent = json.dumps(chat(stream=streaming))
        connection.request("POST", CHAT, sent, {"Content-Type": "application/json"})
        if began:
            connection.getresponse().readline()
        else:
            until(lambda: vendor.asked)
        connection.close()
        assert vendor.left.wait(60), "the vendor goes on working, and is paid for it"
        until(lambda: get(url, "/health")[1]["cancelled"] == 1)
        assert get(url, "/health")[1]["active"] == 0


def test_health_answers_while_much_runs_and_asks_nobody() -> None:
    with ScriptedVendor(Answer(pieces=["hang"])) as vendor, served(vendor.url, timeout_s=1.5) as url:
        threads = [threading.Thread(target=ask, args=(url, CHAT, chat())) for _ in range(32)]
        for thread in threads:
            thread.start()
        until(lambda: len(vendor.asked) == 32)
        began = time.monotonic()
        status, health = get(url, "/health")
        assert status == 200 and health["active"] == 32 and time.monotonic() - began < 1
        for thread in threads:
            thread.join()
    assert len(vendor.asked) == 32


def test_a_client_that_does_not_read_holds_the_vendor_back() -> None:
    pieces = events(*(piece({"content": "x" * 60_000}) for _ in range(800)))
    written = 0

    def counted() -> Any:
        nonlocal written
        for each in pieces:
            written += 1
            yield each

    answer = Answer(stream=True, pieces=[b": begin\n\n"])
    with ScriptedVendor(answer) as vendor, served(vendor.url) as url:
        answer.pieces = _Counted(counted)  # type: ignore[assignment]
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
            body = json.dumps(chat(stream=True)).encode()
            host = url.removeprefix("http://").encode()
            head = b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            client.sendall(head % (CHAT.encode(), host, len(body)) + body)
            until(lambda: written)
            before = -1
            while before != written:  # until what lies in between is full
                before = written
                time.sleep(0.3)
            assert written < len(pieces), "48 MB were taken in for a client that reads nothing"
        until(lambda: get(url, "/health")[1]["active"] == 0)


class _Counted(list[Any]):
    """Pieces that are made when they are written."""

    def __init__(self, make: Any) -> None:
        super().__init__([b": begin\n\n"])
        self._make = make

    def __iter__(self) -> Any:
        return self._make()


# The circuit breaker.


def test_a_vendor_that_fails_is_left_alone_and_asked_again_later() -> None:
    options = {"retries": 0, "breaker_failures": 2, "breaker_s": 0.4}
    with ScriptedVendor(failing(500), failing(500), OK) as vendor, served(vendor.url, **options) as url:
        assert [ask(url, CHAT, chat())[0] for _ in range(2)] == [502, 502]
        status, answer, headers = ask(url, CHAT, chat())
        assert status == 503 and answer["error"]["code"] == "vendor_circuit_open" and headers["retry-after"] == "1"
        assert len(vendor.asked) == 2
        status, health = get(url, "/health")
        assert status == 200 and health["vendor"] == {"circuit": "open", "failures_in_a_row": 2}
        until(lambda: get(url, "/health")[1]["vendor"]["circuit"] == "half-open")
        assert len(vendor.asked) == 2, "health does not ask the vendor"
        assert ask(url, CHAT, chat())[0] == 200
        assert get(url, "/health")[1]["vendor"] == {"circuit": "closed", "failures_in_a_row": 0}


def test_the_breaker_lets_one_try_and_waits_longer_each_time() -> None:
    now = 0.0
    breaker = Breaker(1, 10.0, clock=lambda: now)
    breaker.failed(trying=breaker.enter())
    for pause in (10, 20, 40, 60, 60):
        with pytest.raises(Refusal) as caught:
            breaker.enter()
        assert caught.value.retry_after_s == pause
        now += pause
        assert breaker.enter() is True
        with pytest.raises(Refusal):
            breaker.enter()
        breaker.failed(trying=False)  # one that was sent before it opened
        breaker.failed(trying=True)
    now += 60
    breaker.left(trying=breaker.enter())
    assert breaker.enter() is True
    breaker.worked()
    assert breaker.enter() is False and breaker.state == "closed"


def test_a_vendor_that_hangs_up_without_a_word_is_asked_again_at_once_and_counts_when_it_goes_on() -> None:
    cut = Answer(pieces=["cut"])
    with ScriptedVendor(cut, OK) as vendor, served(vendor.url, breaker_failures=1) as url:
        assert ask(url, CHAT, chat())[0] == 200, "an idle connection was closed: nothing of the vendor is wrong"
    for retries, asked in ((0, 1), (1, 2)):
        with ScriptedVendor(cut) as vendor, served(vendor.url, breaker_failures=1, retries=retries) as url:
            assert ask(url, CHAT, chat())[0] == 502
            assert ask(url, CHAT, chat())[0] == 503 and len(vendor.asked) == asked


def test_the_clients_mistakes_do_not_open_it() -> None:
    with ScriptedVendor(failing(400)) as vendor, served(vendor.url, breaker_failures=1) as url:
        assert [ask(url, CHAT, chat())[0] for _ in range(3)] == [400] * 3
    assert len(vendor.asked) == 3


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("5", 5.0),
        ("0.5", 0.5),
        ("-1", None),
        ("soon", None),
        ("", None),
        ("1e9", None),
        ("9" * 9, 86400.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_retry_after_is_read_with_care(said: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": said}) == seconds


def test_events_are_read_however_they_are_cut() -> None:
    raw = b"data: a\n\ndata:b\r\ndata: c\r\n\r\n: x\n\nevent: e\ndata: d\n\n\n\ndata: e"
    for step in (1, 2, 5, 100):
        reader = EventReader()
        found = [event for at in range(0, len(raw), step) for event in reader.feed(raw[at : at + step])]
        assert found + reader.end() == [b"a", b"b\nc", b"d", b"e"]
