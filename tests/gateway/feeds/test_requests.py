"""What a message asks, which headers travel, and which addresses are taken."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pressroom.gateway.feeds import (
    FeedAddressError,
    FeedError,
    FeedSettings,
    Message,
    broker_for,
    broker_names,
    parse_address,
)
from pressroom.gateway.feeds._answers import Answer, Problem, problem_of, refusal
from pressroom.gateway.feeds._credentials import secret
from pressroom.gateway.feeds._headers import carried, trace_lines
from pressroom.gateway.feeds._requests import Refused, read_request
from pressroom.gateway.feeds.backends._kafka_offsets import Partition
from pressroom.kernel import MissingDependencyError


def read(data: str | bytes | dict[str, Any], *, stream: bool = False, text_as: str = "chat", id: str = "") -> Any:
    if isinstance(data, dict):
        data = json.dumps(data)
    body = data.encode() if isinstance(data, str) else data
    found = read_request(Message(key="k", id=id, data=body), model="m", text_as=text_as, stream=stream)
    return found.id, found.path, json.loads(found.body), found.stream


def test_plain_text_is_a_question() -> None:
    body = {"messages": [{"role": "user", "content": "What is 2 + 2?"}], "model": "m"}
    assert read("What is 2 + 2?") == ("k", "/v1/chat/completions", body, False)
    assert read("Once upon", text_as="completions")[1:3] == ("/v1/completions", {"prompt": "Once upon", "model": "m"})
    assert read("a text", text_as="embeddings")[1:3] == ("/v1/embeddings", {"input": "a text", "model": "m"})
    assert read('"in quotes", 42')[2]["messages"][0]["content"] == '"in quotes", 42'


def test_json_is_a_request_with_everything_in_it() -> None:
    id, path, body, streamed = read({"id": "a-1", "prompt": "x", "max_tokens": 3, "seed": 7}, id="header")
    assert (id, path, streamed) == ("a-1", "/v1/completions", False)
    assert body == {"prompt": "x", "max_tokens": 3, "seed": 7, "model": "m"}
    assert read({"id": 17, "input": ["a", "b"]})[:2] == (17, "/v1/embeddings")
    assert read({"messages": [], "model": "m"}, id="header")[0] == "header"


def test_streaming_is_the_feed_s_or_the_message_s_choice() -> None:
    assert read({"prompt": "x"}, stream=True)[2]["stream_options"] == {"include_usage": True}
    assert read({"prompt": "x", "stream": False}, stream=True)[3] is False
    _, _, body, streamed = read({"prompt": "x", "stream": True, "stream_options": {"include_obfuscation": False}})
    assert (
        streamed and body["stream"] and body["stream_options"] == {"include_obfuscation": False, "include_usage": True}
    )
    assert read({"input": "x"}, stream=True)[3] is False, "embeddings have no pieces"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"\xff\xfe", "UTF-8"),
        (b'{"prompt": "x"', "JSON"),
        (b'{"prompt": "\xed\xa0\x80"}', "UTF-8"),
        (b'{"prompt": NaN}', "JSON"),
        (b"{" * 100_000, "JSON"),
        (b'{"a":' * 5_000, "JSON"),
        (b"{}", "exactly one"),
        (b'{"prompt": "x", "messages": []}', "exactly one"),
        (b'{"prompt": "x", "model": "other"}', "other"),
        (b'{"prompt": "x", "stream": 1}', "stream"),
        (b'{"input": "x", "stream": true}', "stream"),
        (b'{"prompt": "x", "id": {"a": 1}}', "id"),
        (b'{"prompt": "x", "id": true}', "id"),
        (b'{"prompt": "x", "id": "' + b"a" * 513 + b'"}', "id"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_reason(data: bytes, why: str) -> None:
    with pytest.raises(Refused, match=why):
        read(data)


def test_headers_travel_but_not_those_that_brokers_act_on() -> None:
    headers = {
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "X-Tenant": "a",
        "Nats-Rollup": "all",
        "nats-expected-last-msg-id": "1",
        "Status": "503",
        "Bad\r\nName": "x",
        "bad-value": "a\r\nX-Injected: b",
        "long": "x" * 9000,
        "latin": "é",
    }
    assert carried(headers) == {"traceparent": headers["traceparent"], "X-Tenant": "a"}
    assert trace_lines(headers) == f"traceparent: {headers['traceparent']}\r\n".encode()
    assert trace_lines({"tracestate": "a\r\nHost: evil"}) == b""
    assert len(carried({f"h{number}": "x" for number in range(1000)})) == 64


def test_addresses() -> None:
    address = parse_address("nats://one:4222,two:4223/requests.en")
    assert (address.scheme, address.hosts, address.name) == ("nats", ("one:4222", "two:4223"), "requests.en")
    assert str(address) == "nats://one:4222,two:4223/requests.en"
    assert parse_address("kafka://[::1]:9092/topic").hosts == ("[::1]:9092",)
    assert parse_address("kafka://[::1],h,i:1/topic").hosts_with(7) == ["[::1]:7", "h:7", "i:1"]
    assert broker_names() == ["kafka", "nats"]
    with pytest.raises(FeedAddressError, match="amqp"):
        broker_for("amqp", {})


@pytest.mark.parametrize(
    "text",
    [
        "", "nats", "nats://", "nats://host", "nats://host/", "nats:///subject", "nats://host:0/s", "nats://host:99999/s",
        "nats://ho st/s", "nats://host/a b", "nats://host/a\nb", "nats://host/s?token=x", "NATS://host/s", "nats://host,/s",
        "nats://host/" + "x" * 256,
    ],
)  # fmt: skip
def test_what_is_no_address_is_said(text: str) -> None:
    with pytest.raises(FeedAddressError, match="not an address"):
        parse_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "nats://user:hunter2@host/s",
        "nats://hunter2@host:4222/s",
        "kafka://a:1,x:hunter2@b:1/t",
        "u:hunter2@host/s",
        "nats://u:hunter2@host",
        "nats://u:hun/ter2@hunter2/s",
    ],
)
def test_an_address_with_a_password_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(FeedAddressError) as refused:
        parse_address(text)
    assert "hunter2" not in str(refused.value.as_dict())
    assert "environment" in refused.value.hint


def test_names_of_subjects_and_topics() -> None:
    nats, kafka = broker_for("nats", {}), broker_for("kafka", {})
    for name in ("a", "a.b.c", "a.*.c", "a.>"):
        nats.check(parse_address(f"nats://h/{name}"))
    for name in ("a..b", ".a", "a.", "a.>.b", "$SYS.x", "a*"):
        with pytest.raises(FeedAddressError):
            nats.check(parse_address(f"nats://h/{name}"))
    kafka.check(parse_address("kafka://h/a.b_c-d"))
    with pytest.raises(FeedAddressError):
        kafka.check(parse_address("kafka://h/a/b"))
    assert nats.overlap("a.>", "a.b.c") and nats.overlap("a.*", "a.b") and nats.overlap("a", "a")
    assert not nats.overlap("a.>", "a") and not nats.overlap("a.*", "a.b.c") and not nats.overlap("a", "b")
    assert nats.overlap(">", "anything.at.all") and not nats.overlap("a.b.>", "a.c.d")


def test_secrets_come_from_a_variable_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    assert secret({"P": "direct", "P_FILE": str(file)}, "P") == "direct"
    assert secret({"P_FILE": str(file)}, "P") == "hunter2"
    assert secret({}, "P") is None
    with pytest.raises(FeedError, match="P_FILE"):
        secret({"P_FILE": str(tmp_path / "missing")}, "P")
    file.write_bytes(b"\xff\xfe hunter2")
    with pytest.raises(FeedError) as refused:
        secret({"P_FILE": str(file)}, "P")
    assert "hunter2" not in str(refused.value.as_dict())


@pytest.mark.parametrize(("scheme", "library"), [("nats", "nats"), ("kafka", "aiokafka")])
def test_a_missing_library_is_named_with_its_extra(scheme: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    address, settings = parse_address(f"{scheme}://127.0.0.1:1/name"), FeedSettings(group="g")
    broker = broker_for(scheme, {})
    for opened in (broker.source(address, settings), broker.sink(address, settings)):
        with pytest.raises(MissingDependencyError) as missing:
            asyncio.run(opened.open())
        assert missing.value.hint == f"Install it with: pip install 'pressroom[{scheme}]'"


def test_kafka_commits_have_no_gaps() -> None:
    partition = Partition()
    assert all(partition.take(offset) for offset in (5, 6, 8, 9))
    assert not partition.take(8), "it is being worked on"
    assert not partition.finish(6) and not partition.finish(9)
    assert partition.finish(5) and partition.mark == 7
    assert not partition.take(6), "it is done"
    assert not partition.finish(6), "it was told already"
    assert partition.finish(8) and partition.mark == 10 and len(partition) == 0
    partition.committed = 10
    assert partition.take(12)
    partition.owned = False
    partition.resume(11)  # somebody else did some meanwhile
    assert partition.owned and partition.mark == 11 and not partition.take(12)
    assert partition.take(3), "the topic was made anew"
    assert partition.finish(3) and partition.mark == 4


def answer(**more: Any) -> Answer:
    return Answer(id="i", model="m", version="sha256-0", deliveries=1, **more)


def test_an_answer_is_its_text_and_more_where_there_is_more() -> None:
    usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    body: dict[str, Any] = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": usage}
    assert json.loads(answer().whole(json.dumps(body).encode(), 0.25)) == {
        "id": "i", "model": "m", "version": "sha256-0", "deliveries": 1, "text": "hi", "finish_reason": "stop",
        "usage": usage, "latency_ms": 250.0,
    }  # fmt: skip
    assert json.loads(answer(keep_body=True).whole(json.dumps(body).encode(), 0))["response"] == body
    body["choices"].append({"message": {"content": "ho"}, "finish_reason": "stop"})
    assert json.loads(answer().whole(json.dumps(body).encode(), 0))["choices"] == body["choices"]
    vectors = {"data": [{"embedding": [1.0, 2.0]}], "usage": usage}
    assert json.loads(answer().whole(json.dumps(vectors).encode(), 0))["embeddings"] == [[1.0, 2.0]]
    for broken in (b"", b"[]", b"{}", b'{"choices": []}', b'{"choices": [1]}'):
        with pytest.raises(ValueError, match="not an answer"):
            answer().whole(broken, 0)


def test_pieces_have_their_place_and_the_last_has_all() -> None:
    said = answer()

    def event(**choice: Any) -> dict[str, Any]:
        return {"choices": [{"index": 0, **choice}]}

    assert said.piece(event(delta={"role": "assistant", "content": None})) is None
    first = json.loads(said.piece(event(delta={"content": "to "})) or b"")
    second = json.loads(
        said.piece(event(delta={"content": "be"}, logprobs={"content": []}, finish_reason="stop")) or b""
    )
    assert said.piece({"choices": [], "usage": {"completion_tokens": 2}}) is None
    last = json.loads(said.final(1.0, 0.5))
    assert (first["sequence"], second["sequence"], last["sequence"]) == (0, 1, 2)
    assert first["piece"] == "to " and second["choices"][0]["logprobs"] == {"content": []}
    assert last["final"] is True and last["text"] == "to be" and last["finish_reason"] == "stop"
    assert last["usage"] == {"completion_tokens": 2} and (last["ttft_ms"], last["latency_ms"]) == (500.0, 1000.0)
    assert len({record["attempt"] for record in (first, second, last)}) == 1
    assert answer().attempt != said.attempt


def test_a_refusal_holds_the_message_and_the_reason() -> None:
    problem = problem_of(400, b'{"error": {"message": "no", "type": "t", "param": "p", "code": "c"}}')
    assert problem == Problem(message="no", status=400, code="c", type="t", param="p")
    assert problem_of(502, b"<html>").message == "<html>"
    record = json.loads(refusal(Message(key="k", data=b"what came"), "i", "m", problem))
    assert record["error"] == {"message": "no", "type": "t", "param": "p", "code": "c", "status": 400}
    assert (record["id"], record["message"]) == ("i", "what came")
    assert json.loads(refusal(Message(key="k", data=b"\xff"), "i", "m", problem))["message_base64"] == "/w=="
    long = json.loads(refusal(Message(key="k", data=b"x" * 65_535 + "é".encode()), "i", "m", problem))
    assert long["message"] == "x" * 65_535 and long["message_bytes"] == 65_537
    short = json.loads(refusal(Message(key="k", data=b"abc"), "i", "m", problem, quote=False))
    assert "message" not in short and short["message_bytes"] == 3
