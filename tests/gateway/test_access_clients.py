"""Clients of our own at a gateway that asks for keys: each sends its key, and says what to do without one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pressroom.cli._client import Answer, AnswerError, stream_chat
from pressroom.gateway.access import Access
from pressroom.gateway.batches import BatchError, FileJob, Options
from pressroom.gateway.bench import Bench, BenchError, BenchSettings
from pressroom.gateway.feeds._asking import Gateway
from pressroom.gateway.feeds._requests import Request
from pressroom.kernel import Keys, Workspace

from .batches.serving import Serving
from .engines_and_clients import Echoes, route_to

CHAT = {"model": "m", "messages": [{"role": "user", "content": "one two"}]}
HINT = "press keys create"


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Workspace.open(tmp_path, environ={}) as opened:
        yield opened


@pytest.fixture
def secret(workspace: Workspace) -> str:
    return Keys(workspace).create("app", ["ask"])[1]


@pytest.fixture
def serving(workspace: Workspace, secret: str, echo: Echoes) -> Iterator[Serving]:
    access = Access(Keys(workspace), require_key=True)
    assert access.renew()
    with Serving(workspace, route_to(echo().port), access=access) as opened:
        yield opened


def test_ask(serving: Serving, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("", "none", "pr-" + "a" * 43):
        monkeypatch.setenv("PRESS_KEY", wrong)
        with pytest.raises(AnswerError) as caught:
            list(stream_chat(serving.url, CHAT, Answer()))
        assert HINT in caught.value.hint and "PRESS_KEY" in caught.value.hint
        assert caught.value.facts["status"] == 401
    monkeypatch.setenv("PRESS_KEY", secret)
    assert "".join(stream_chat(serving.url, CHAT, Answer())) == "one two"
    assert serving.asked == {"app": 1}


def bench(url: str, key: str) -> Any:
    settings = BenchSettings(clients=(2,), requests=4, tokens=4, prompt_tokens=8)
    return asyncio.run(Bench(url, "m", settings, key=key).run())


def test_bench(serving: Serving, secret: str) -> None:
    with pytest.raises(BenchError) as caught:
        bench(serving.url, "")
    assert HINT in caught.value.hint
    (found,) = bench(serving.url, secret)
    assert found.requests == 4 and not found.errors


def test_batch(serving: Serving, secret: str, workspace: Workspace, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(f'"prompt {n}"\n' for n in range(20)))

    def run(key: str) -> Any:
        return FileJob(source, out, Options(url=serving.url, deployment="m", key=key), workspace).run()

    with pytest.raises(BatchError) as caught:
        run("")
    assert HINT in caught.value.hint and secret not in repr(Options(url="", deployment="", key=secret))
    assert not out.read_bytes()  # no line is given up for it
    summary = run(secret)
    assert (summary.total, summary.failed, summary.left) == (20, 0, 0)
    assert serving.asked == {"app": 20}


def test_feed(serving: Serving, secret: str) -> None:
    async def ask(key: str) -> tuple[int, bytes]:
        gateway = Gateway(serving.url, key=key)
        body = json.dumps(CHAT).encode()
        exchange = gateway.ask(
            Request(id="1", path="/v1/chat/completions", body=body, stream=False), b"traceparent: 00\r\n"
        )
        try:
            return (await exchange.reply()).status, await exchange.body()
        finally:
            exchange.close()
            gateway.close()

    assert asyncio.run(ask(""))[0] == 401
    status, answer = asyncio.run(ask(secret))
    assert status == 200 and json.loads(answer)["choices"][0]["message"]["content"] == "one two"
