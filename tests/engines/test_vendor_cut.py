"""A client that closes its side of a request to a vendor: the vendor is left, and what is known of the cost is said."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

import pytest

from .vendor_servers import Answer, ScriptedVendor, events, get, served, until

CHAT = "/v1/chat/completions"
BASE = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "upstream-model"}


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {**BASE, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


SAID = [
    chunk({"role": "assistant", "content": ""}),
    *(chunk({"content": f" {word}"}) for word in ("one", "two", "three")),
]
USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}


def asked(**more: Any) -> dict[str, Any]:
    return {"model": "mine", "messages": [{"role": "user", "content": "Count to a hundred, slowly."}], **more}


def cut(url: str, vendor: ScriptedVendor, path: str, body: dict[str, Any], *, seen: bytes = b"") -> bytes:
    """What comes in all where the client closes its side once the vendor was asked and `seen` has come."""
    with socket.create_connection(tuple(url.removeprefix("http://").split(":")), timeout=60) as line:  # type: ignore[arg-type]
        sent = json.dumps(body).encode()
        host = url.removeprefix("http://").encode()
        line.sendall(
            b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (path.encode(), host, len(sent), sent)
        )
        until(lambda: vendor.asked)
        came = b""
        while seen not in came:
            came += line.recv(65536)
        line.shutdown(socket.SHUT_WR)
        while piece := line.recv(65536):
            came += piece
    answer = http.client.HTTPResponse(_Came(came))  # type: ignore[arg-type]
    answer.begin()
    assert answer.status == 200
    return answer.read()


class _Came:
    """Bytes as http.client reads them."""

    def __init__(self, came: bytes) -> None:
        self._came = came

    def makefile(self, _: str) -> Any:
        import io

        return io.BytesIO(self._came)


def last(body: bytes) -> dict[str, Any]:
    found = [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event]
    assert found[-1] == b"[DONE]"
    words: dict[str, Any] = json.loads(found[-2])
    assert words["cut"] is True and words["choices"] == [] and words["model"] == "mine"
    return words


def test_a_stream_is_cut_with_the_pieces_that_came() -> None:
    answer = Answer(stream=True, pieces=[*events(*SAID), "hang"])
    with ScriptedVendor(answer) as vendor, served(vendor.url) as url:
        words = last(cut(url, vendor, CHAT, asked(stream=True), seen=b"three"))
        assert vendor.left.wait(60), "the vendor goes on working, and is paid for it"
        assert words["estimated"] is True and words["id"] == "c1"
        # 27 bytes, four a token, and four around the message.
        assert words["usage"]["prompt_tokens"] == 11 and words["usage"]["completion_tokens"] == 3
        assert words["usage"]["total_tokens"] == 14
        assert get(url, "/health")[1]["cancelled"] == 1 and get(url, "/health")[1]["active"] == 0


def test_what_the_vendor_stated_is_believed() -> None:
    usage = {**BASE, "choices": [], "usage": USAGE}
    answer = Answer(stream=True, pieces=[*events(*SAID, usage, b"[DONE]"), "hang"])
    with ScriptedVendor(answer) as vendor, served(vendor.url) as url:
        # Its end was seen, and the vendor only does not close: the answer is whole, or was cut with the same figures.
        body = cut(url, vendor, CHAT, asked(stream=True, stream_options={"include_usage": True}), seen=b"three")
    words = json.loads(body.split(b"\n\n")[-3].removeprefix(b"data: "))
    assert "estimated" not in words
    assert {name: words["usage"][name] for name in USAGE} == USAGE


def test_anthropic_states_the_prompt_when_it_begins() -> None:
    pieces = events(
        {"type": "message_start", "message": {"id": "m1", "usage": {"input_tokens": 21, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": t}} for t in "abcd"),
    )
    with (
        ScriptedVendor(Answer(stream=True, pieces=[*pieces, "hang"])) as vendor,
        served(vendor.url.removesuffix("/v1"), "anthropic") as url,
    ):
        words = last(cut(url, vendor, CHAT, asked(stream=True), seen=b'"d"'))
    assert words["estimated"] is True
    assert words["usage"]["prompt_tokens"] == 21 and words["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("stream", [False, True])
def test_cut_before_anything_came(stream: bool) -> None:
    with ScriptedVendor(Answer(pieces=["hang"])) as vendor, served(vendor.url) as url:
        body = cut(url, vendor, CHAT, asked(stream=stream))
        assert vendor.left.wait(60)
    words = last(body) if stream else json.loads(body)
    assert words["cut"] is True and words["choices"] == [] and words["estimated"] is True
    assert words["object"] == ("chat.completion.chunk" if stream else "chat.completion")
    assert words["usage"]["prompt_tokens"] == 11 and words["usage"]["completion_tokens"] == 0


def test_a_completion_is_cut_as_a_completion() -> None:
    answer = Answer(stream=True, pieces=[*events(*SAID), "hang"])
    with ScriptedVendor(answer) as vendor, served(vendor.url) as url:
        words = last(cut(url, vendor, "/v1/completions", {"prompt": "Count.", "stream": True}, seen=b"three"))
    assert words["object"] == "text_completion"
    assert words["usage"]["prompt_tokens"] == 2 and words["usage"]["completion_tokens"] == 3


def test_a_client_that_closes_its_side_before_it_has_asked_is_left() -> None:
    with ScriptedVendor(Answer(pieces=["hang"])) as vendor, served(vendor.url) as url:
        for sent in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"):
            with socket.create_connection(tuple(url.removeprefix("http://").split(":")), timeout=60) as line:  # type: ignore[arg-type]
                line.sendall(sent)
                line.shutdown(socket.SHUT_WR)
                while line.recv(65536):
                    pass
        until(lambda: get(url, "/health")[1]["active"] == 0)
        assert not vendor.asked
