"""From `press pull openai:…` to an answer through the gateway; and the key in nothing that was written on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from pressroom.deploy import Deployments, Phase, Server, make_wish, wait_until
from pressroom.kernel import Workspace
from pressroom.registry import pull

from .test_vendor_openai import CHAT, USUAL, chat, streamed, whole
from .vendor_servers import Answer, ScriptedVendor, ask, stream

KEY = "sk-test-0123456789abcdef"


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
def test_a_vendors_model_answers_at_the_gateway(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VENDOR_KEY", KEY)
    monkeypatch.setenv("PRESSROOM_GATEWAY_GRPC_PORT", "-1")
    monkeypatch.setenv("PRESSROOM_OFFLINE", "true")
    said: list[Any] = []
    with ScriptedVendor(*answers(protocol)) as vendor, Workspace.open(tmp_path) as workspace:
        pull(workspace, f"{protocol}:upstream-model@{vendor.url}", name="mini")
        wish = make_wish(workspace, "mini", engine="vendor", options={"key_env": "VENDOR_KEY", "retries": 0})
        with Server(workspace, port=0) as server:
            wait_until(Deployments(workspace), wish, Phase.READY, timeout_s=60)
            body = {**chat(), "model": "mini"}
            said.append(ask(server.url, CHAT, body))
            assert said[0][0] == 200 and said[0][1]["choices"][0]["message"]["content"] == "hello"
            assert said[0][1]["model"] == "mini" and said[0][1]["usage"]["total_tokens"] == 5
            said.append(stream(server.url, CHAT, body))
            assert said[1][-1] == "[DONE]"
            said.append(ask(server.url, CHAT, body))
            status, refusal, _ = said[2]
            assert status == 502 and "refuses the key" in refusal["error"]["message"]
            assert refusal["error"]["code"] == "vendor_refused_key"
            mine = psutil.Process()
            said.append([process.cmdline() for process in (mine, *mine.children(recursive=True))])
            said.append(str(Deployments(workspace).observed(wish)))
    written = {path: path.read_bytes() for path in workspace.dir.rglob("*") if path.is_file()}
    assert written and not [path for path, content in written.items() if KEY.encode() in content]
    assert KEY not in json.dumps(said) and KEY not in "".join(capfd.readouterr())
    header = "authorization" if protocol == "openai" else "x-api-key"
    assert all(asked.headers[header].endswith(KEY) for asked in vendor.asked) and len(vendor.asked) == 3


def answers(protocol: str) -> list[Answer]:
    refusal = Answer(status=401, body={"error": {"type": "authentication_error", "message": f"not {KEY}"}})
    if protocol == "openai":
        return [Answer(body=whole()), streamed(*USUAL), refusal]
    from .test_vendor_anthropic import SAID, message, text
    from .test_vendor_anthropic import streamed as streamed_events

    answer = {**message(text("hello")), "usage": {"input_tokens": 3, "output_tokens": 2}}
    return [Answer(body=answer), streamed_events(SAID), refusal]
