"""`openai:` and `anthropic:`: a vendor's model becomes a version without a network, and without a key."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressroom.engines.base import Capabilities
from pressroom.kernel import MalformedWeightsError, PressroomError, SourceError, StoreFullError, Workspace
from pressroom.registry import Registry, pull
from pressroom.registry.sources.anthropic import Backend as Anthropic
from pressroom.registry.sources.openai import Backend as OpenAI
from pressroom.store import inspect
from pressroom.store.formats import _remote


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("PRESSROOM_OFFLINE", "true")
    return Workspace.open(tmp_path)


def described(workspace: Workspace, ref: str) -> dict[str, Any]:
    registry = Registry(workspace)
    version = registry.get(ref)
    assert [entry.path for entry in version.files] == ["endpoint.json"]
    found = json.loads(registry.materialise(version).read_text())
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("source", "origin", "url", "model"),
    [
        ("openai:gpt-4o-mini", "openai:gpt-4o-mini", "https://api.openai.com/v1", "gpt-4o-mini"),
        ("openai:m@https://host/v1/", "openai:m@https://host/v1", "https://host/v1", "m"),
        ("openai:m@https://host", "openai:m@https://host/v1", "https://host/v1", "m"),
        ("openai:m@HTTPS://host:8443/a/b", "openai:m@https://host:8443/a/b", "https://host:8443/a/b", "m"),
        (
            "openai:org/m:free@http://[::1]:1/v1",
            "openai:org/m:free@http://[::1]:1/v1",
            "http://[::1]:1/v1",
            "org/m:free",
        ),
        ("openai:m@2024@https://host/v1", "openai:m@2024@https://host/v1", "https://host/v1", "m@2024"),
        ("openai:m@https://api.openai.com/v1", "openai:m", "https://api.openai.com/v1", "m"),
        ("anthropic:claude-x", "anthropic:claude-x", "https://api.anthropic.com/v1", "claude-x"),
        ("anthropic:c@https://api.anthropic.com", "anthropic:c", "https://api.anthropic.com/v1", "c"),
        (
            "anthropic:c@https://host/anthropic",
            "anthropic:c@https://host/anthropic/v1",
            "https://host/anthropic/v1",
            "c",
        ),
    ],
)
def test_a_vendors_model_is_a_version(workspace: Workspace, source: str, origin: str, url: str, model: str) -> None:
    version = pull(workspace, source, name="mini")
    assert version.source == origin and version.metadata["format"] == "remote" and "parameters" not in version.metadata
    protocol = source.partition(":")[0]
    assert described(workspace, "mini") == {"protocol": protocol, "url": url, "model": model}
    again = pull(workspace, source, name="mini")
    assert (again.name, again.number) == (version.name, version.number), "the same text is the same version"


def test_its_name_is_the_models(workspace: Workspace) -> None:
    assert pull(workspace, "openai:meta-llama/Llama-3.1-8B@https://host/v1").name == "llama-3.1-8b"


@pytest.mark.parametrize(
    "source",
    [
        "openai:",
        "openai:@https://host/v1",
        "openai:a b",
        "openai:m\x00",
        "openai:schlüssel",
        "openai:" + "m" * 300,
        "openai:m#member",
        "openai:m@https://",
        "openai:m@https://user:hunter2@host/v1",
        "openai:m@https://hunter2@host/v1",
        "openai:m@https://user:hun?ter2@host/v1",
        "openai:m@https://user:hun/ter2@host/v1",
        "openai:m@https://user/hunter2@host/v1",
        "openai:https://user:hunter2@host/v1",
        "openai:m@https://host/v1?key=hunter2",
        "openai:m@https://host:hunter2/v1",
        "openai:m@https://ho st/v1",
        "openai:m@https://[::1/v1",
        "anthropic:m@https://user:hunter2@host",
    ],
)
def test_what_is_no_address_is_refused_and_no_password_said(workspace: Workspace, source: str) -> None:
    with pytest.raises(SourceError) as caught:
        pull(workspace, source, name="mini")
    said = caught.value.message + caught.value.hint + json.dumps(caught.value.facts)
    assert "hunter2" not in said and "ter2" not in said and caught.value.hint
    assert not Registry(workspace).list()
    left = [path for path in workspace.dir.rglob("*") if path.is_file()]
    assert not any(b"ter2" in path.read_bytes() for path in left)


@given(st.text(max_size=60))
def test_any_text_is_a_model_or_an_error(text: str) -> None:
    for source in (OpenAI(), Anthropic()):
        try:
            origin = source.exact(text, None)
        except SourceError:
            continue
        assert origin is not None
        # What was made of it is what it means.
        assert source.exact(origin.partition(":")[2], None) == origin


def test_a_full_disk_is_said(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StoreFullError):
        pull(workspace, "openai:m", name="mini")


# The description itself


def test_a_description_may_be_pulled_from_a_file(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "endpoint.json"
    given = {"protocol": "openai", "url": "http://127.0.0.1:1/v1", "model": "m", "context": 4096}
    path.write_text(json.dumps({**given, "capabilities": {"embeddings": False, "tools": True}}))
    version = pull(workspace, str(path), name="own")
    assert version.metadata["format"] == "remote" and version.metadata["context_length"] == 4096
    header = version.metadata["header"]
    assert header["capabilities.embeddings"] is False and header["capabilities.tools"] is True
    assert header["model"] == "m" and header["protocol"] == "openai"


def test_its_capabilities_are_those_of_engines() -> None:
    # How an engine states its tokens is between it and the gateway.
    own = {"states_tokens", "says_counts", "finishes"}
    assert {field.name for field in dataclasses.fields(Capabilities)} - own == _remote.CAPABILITIES


GOOD = {"protocol": "openai", "url": "https://host/v1", "model": "m"}


@pytest.mark.parametrize(
    "change",
    [
        {"key": "hunter2"},
        {"api_key": "hunter2"},
        {"hunter2": 1},
        {"protocol": "hunter2"},
        {"protocol": 7},
        {"model": "hunter2\n"},
        {"model": ""},
        {"model": None},
        {"url": "https://user:hunter2@host/v1"},
        {"url": "https://host/v1?key=hunter2"},
        {"url": "https://host/v1#hunter2"},
        {"url": "https://host/v1?"},
        {"url": "file:///etc/hunter2"},
        {"url": "https://"},
        {"url": "https://host:hunter2/"},
        {"url": "https://ho\u00adst/"},
        {"url": ["https://host"]},
        {"url": "https://host/" + "hunter2" * 1000},
        {"context": 0},
        {"context": True},
        {"context": 1 << 40},
        {"context": "4096"},
        {"capabilities": ["tools"]},
        {"capabilities": {"hunter2": True}},
        {"capabilities": {"tools": 1}},
    ],
)
def test_a_description_that_is_none_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "endpoint.json"
    path.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(MalformedWeightsError) as caught:
        inspect(path)
    assert "hunter2" not in caught.value.message + caught.value.hint + json.dumps(caught.value.facts)


@pytest.mark.parametrize(
    "raw", [b"{", b"{}", b'{"url": 1, "url": 2}', b"{" + b" " * (65 << 10) + b"}", b'{"a":' * 50_000]
)
def test_bytes_that_are_no_description_are_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "endpoint.json"
    path.write_bytes(raw)
    with pytest.raises(MalformedWeightsError):
        inspect(path)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_description_or_an_error(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "endpoint.json"
    path.write_bytes(b"{" + raw)
    with pytest.raises(PressroomError):
        inspect(path)


def test_other_json_is_no_description(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps(GOOD))
    with pytest.raises(MalformedWeightsError, match="it is JSON"):
        inspect(path)
