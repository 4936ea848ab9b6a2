"""The contract of an engine, kept by vendors: llm-katan plays OpenAI and Anthropic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pressroom.engines import Capabilities, Endpoint, EngineSpec
from pressroom.testing.engine_contract import EngineContract

from .vendor_servers import ask, description, katan, stream


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with katan(tmp_path_factory.mktemp("katan")) as url:
        yield url


class _Vendor(EngineContract):
    engine_name = "vendor"
    protocol = ""

    @pytest.fixture
    def spec(self, tmp_path: Path, vendor: str) -> EngineSpec:
        model = description(tmp_path, self.protocol, vendor)
        return EngineSpec(name="tested", model=model, log=tmp_path / "engine.log", options=_key(tmp_path))

    @pytest.fixture
    def talker(self) -> Iterator[Endpoint]:
        pytest.skip("llm-katan answers at once; test_vendor_cut.py has a vendor that takes its time")

    def test_max_tokens_is_kept(self, endpoint: Endpoint) -> None:
        # llm-katan's echo does not keep to it, and says what it was.
        answer = ask(endpoint.url, "/v1/completions", {"prompt": "hello", "max_tokens": 2})[1]
        assert "max_tokens=2 " in answer["choices"][0]["text"]

    def test_what_it_can_do_is_in_its_endpoint(self, endpoint: Endpoint) -> None:
        can = endpoint.capabilities
        assert can is not None and can.chat and can.completions and can.streaming and can.tools and can.json_schema
        assert can.embeddings is can.logprobs is (self.protocol == "openai")
        assert isinstance(can, Capabilities) and not can.several

    def test_tools_streamed(self, endpoint: Endpoint) -> None:
        function = {"name": "greet", "parameters": {"type": "object", "properties": {"name": {"type": "string"}}}}
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": "hi"}],
            "tools": [{"type": "function", "function": function}],
            "stream_options": {"include_usage": True},
        }
        *chunks, usage, done = stream(endpoint.url, "/v1/chat/completions", body)
        assert done == "[DONE]" and usage["usage"]["total_tokens"] > 0
        calls = [call for chunk in chunks for call in chunk["choices"][0]["delta"].get("tool_calls") or []]
        assert calls[0]["id"] and calls[0]["function"]["name"] == "greet" and {call["index"] for call in calls} == {0}
        assert (
            "".join(call["function"].get("arguments", "") for call in calls).replace(" ", "") == '{"name":"test_name"}'
        )
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def _key(folder: Path) -> dict[str, Any]:
    key = folder / "key"
    key.write_text("a-key-of-the-tests\n")
    key.chmod(0o600)
    return {"key_file": str(key)}


class TestOpenAI(_Vendor):
    protocol = "openai"


@pytest.mark.slow
class TestAnthropic(_Vendor):
    protocol = "anthropic"

    def test_json_schema_streamed_or_not(self, endpoint: Endpoint) -> None:
        schema = {"type": "object", "properties": {"loud": {"type": "boolean"}}, "required": ["loud"]}
        format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
        body = {"messages": [{"role": "user", "content": "hi"}], "response_format": format}
        answer = ask(endpoint.url, "/v1/chat/completions", body)[1]
        (choice,) = answer["choices"]
        assert choice["message"] == {"role": "assistant", "content": '{"loud":true}'}
        assert choice["finish_reason"] == "stop"
        *chunks, done = stream(endpoint.url, "/v1/chat/completions", body)
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        assert text.replace(" ", "") == '{"loud":true}' and done == "[DONE]"
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
