"""From tokens to text: whole characters, stop strings, calls of tools."""

from __future__ import annotations

import random
from typing import Any

import pytest

pytest.importorskip("transformers")

from pressroom.engines._transformers.calls import CallReader, call_schema, chosen, tools_of
from pressroom.engines._transformers.chat import Template
from pressroom.engines._transformers.refusal import Refusal
from pressroom.engines._transformers.speech import Speech
from pressroom.engines._transformers.vocabulary import Vocabulary

from . import _tiny_models as tiny


@pytest.fixture(scope="module", params=["byte_level", "pieces", "word_pieces"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    tokenizer = getattr(tiny, request.param)()
    return Vocabulary(tokenizer, len(tokenizer))


@pytest.fixture(scope="module")
def letters() -> Vocabulary:
    tokenizer = tiny.byte_level()
    return Vocabulary(tokenizer, len(tokenizer))


class _Spelled:
    """A decoder whose tokens are the code points of their text."""

    def push(self, token: int) -> str:
        return chr(token)

    def rest(self) -> str:
        return ""


def _decoded(vocabulary: Vocabulary, tokens: list[int]) -> str:
    decoder = vocabulary.decoder()
    return "".join([decoder.push(token) for token in tokens] + [decoder.rest()])


TEXTS = ["the cat runs fast", "", "ab the ab", "日本語 🙂🙃 é", "a" * 300, "  two  spaces\n\nlines\t", tiny.TEXT]


@pytest.mark.parametrize("text", TEXTS)
def test_piece_by_piece_is_the_whole_text(vocabulary: Vocabulary, text: str) -> None:
    tokens = vocabulary.encode(text, special=False)
    assert _decoded(vocabulary, tokens) == vocabulary.tokenizer.decode(tokens, skip_special_tokens=True)


def test_no_half_character_is_ever_sent(letters: Vocabulary) -> None:
    decoder = letters.decoder()
    said = [decoder.push(token) for token in letters.encode("日本語 🙂🙃", special=False)]
    assert "".join(said) == "日本語 🙂🙃"
    assert not any("\ufffd" in piece for piece in said)
    assert said.count("") > 3, "parts of characters wait for the rest"


def test_bytes_that_are_no_text_come_out_as_the_library_writes_them(letters: Vocabulary) -> None:
    chance = random.Random(1)
    for _ in range(300):
        tokens = [chance.randrange(letters.size) for _ in range(chance.randrange(1, 40))]
        assert _decoded(letters, tokens) == letters.tokenizer.decode(tokens, skip_special_tokens=True)


def test_special_tokens_are_left_out_unless_asked_for(letters: Vocabulary) -> None:
    tokens = letters.encode("<|im_start|>a<|im_end|>", special=False)
    assert len(tokens) == 3
    assert _decoded(letters, tokens) == "a"
    decoder = letters.decoder(skip_special=False)
    assert "".join(decoder.push(token) for token in tokens) == "<|im_start|>a<|im_end|>"


def test_a_token_says_its_bytes(letters: Vocabulary) -> None:
    tokens = letters.encode("é🙂", special=False)
    assert b"".join(map(letters.piece, tokens)).decode() == "é🙂"
    assert letters.piece(10**6) == b"" and letters.shown(10**6) == ""


def test_a_tokenizer_that_cuts_and_fills_does_neither_here() -> None:
    tokenizer = tiny.word_pieces()
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    assert len(vocabulary.encode("the cat", special=True)) == 4
    assert len(vocabulary.encode("cat " * 100, special=True)) == 102


@pytest.mark.parametrize(
    ("stops", "text", "sent"),
    [
        (["END"], "one END two", "one "),
        (["END"], "no E, no EN, no end", "no E, no EN, no end"),
        (["bc", "abcd"], "xabcd", "xa"),
        (["abc", "ab"], "xabc", "x"),
        (["\n\n"], "one\ntwo\n", "one\ntwo\n"),
        (["aab"], "aaab", "a"),
        (["é"], "caféteria", "caf"),
    ],
)
def test_stop_strings(stops: list[str], text: str, sent: str) -> None:
    for size in range(1, len(text) + 1):
        speech = Speech(_Pieces(text, size), stops)
        pieces = [speech.push(at) for at in range(-(-len(text) // size))]
        whole = "".join(pieces) + (speech.rest() if not speech.stopped else "")
        if size == 1:
            assert whole == sent
        assert not any(stop in whole for stop in stops)
        assert speech.stopped == any(stop in text for stop in stops)
        assert speech.length == len(whole)


class _Pieces:
    """Token n is the n-th piece of the text."""

    def __init__(self, text: str, size: int) -> None:
        self._pieces = [text[at : at + size] for at in range(0, len(text), size)]

    def push(self, token: int) -> str:
        return self._pieces[token]

    def rest(self) -> str:
        return ""


def test_what_may_become_a_stop_string_waits() -> None:
    speech = Speech(_Spelled(), ["stop"])
    assert [speech.push(ord(letter)) for letter in "a stork"] == ["a", " ", "", "", "", "stor", "k"]
    assert [speech.push(ord(letter)) for letter in " st"] == [" ", "", ""]
    assert speech.rest() == "st"


def test_the_stop_string_can_be_kept() -> None:
    speech = Speech(_Spelled(), ["!"], include_stop=True)
    assert "".join(speech.push(ord(letter)) for letter in "hey! you") == "hey!"
    assert speech.length == 4


CALL = '<tool_call>\n{"name": "greet", "arguments": {"who": "Ann"}}\n</tool_call>'


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_calls_are_taken_out_of_the_text(size: int) -> None:
    text = f"Of course. {CALL}\n{CALL}"
    reader = CallReader({"greet"})
    said, calls = "", []
    for at in range(0, len(text), size):
        more, found = reader.push(text[at : at + size])
        said += more
        calls += found
    more, found = reader.rest()
    assert said + more == "Of course. " and not found
    assert [call["function"] for call in calls] == [{"name": "greet", "arguments": '{"who": "Ann"}'}] * 2
    assert len({call["id"] for call in calls}) == 2


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>nonsense</tool_call>",
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "greet", "arguments": 7}</tool_call>',
        '<tool_call>{"name": "greet"',
        "<tool_cal",
        "a < b <tool",
        "<tool_call>" + "[" * 5000 + "</tool_call>",
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    reader = CallReader({"greet"})
    said, calls = reader.push(text)
    more, found = reader.rest()
    assert said + more == text and calls == found == []


def test_a_call_that_the_end_cut_off_behind_its_json_counts() -> None:
    reader = CallReader({"greet"})
    assert reader.push('<tool_call>{"name": "greet", "arguments": {}}') == ("", [])
    said, (call,) = reader.rest()
    assert said == "" and call["function"]["name"] == "greet"


def _tool(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **({"parameters": parameters} if parameters else {})}}


def test_which_tools_may_be_called() -> None:
    tools = [_tool("one"), _tool("two")]
    assert chosen({"tools": tools}, tools) == (tools, False)
    assert chosen({"tool_choice": "none"}, tools) == ([], False)
    assert chosen({"tool_choice": "required"}, tools) == (tools, True)
    named = {"type": "function", "function": {"name": "two"}}
    assert chosen({"tool_choice": named}, tools) == (tools[1:], True)
    for wrong in ("any", {"type": "function", "function": {"name": "three"}}, 7):
        with pytest.raises(Refusal):
            chosen({"tool_choice": wrong}, tools)
    for wrong in ("tools", [{"type": "web"}], [{"type": "function", "function": {}}], [_tool("x")] * 129):
        with pytest.raises(Refusal):
            tools_of({"tools": wrong})


def test_the_schema_of_a_call_keeps_references_inside_its_parameters() -> None:
    plain = _tool("one")
    linked = _tool("two", type="object", properties={"a": {"$ref": "#/$defs/x"}}, **{"$defs": {"x": {"type": "null"}}})
    schema = call_schema([plain, linked])
    moved = schema["anyOf"][1]["properties"]["arguments"]
    assert moved["properties"]["a"]["$ref"] == "#/anyOf/1/properties/arguments/$defs/x"
    assert call_schema([linked])["properties"]["arguments"]["properties"]["a"]["$ref"].startswith("#/properties/")


def test_the_template_writes_the_conversation(letters: Vocabulary) -> None:
    template = Template(letters)
    assert template.knows_tools
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    messages = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": parts}]
    assert template.text({"messages": messages}, None) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    begun = [*messages, {"role": "assistant", "content": "Good"}]
    going_on = template.text({"messages": begun, "continue_final_message": True}, None)
    assert going_on.endswith("<|im_start|>assistant\nGood")
    call = {"id": "1", "type": "function", "function": {"name": "greet", "arguments": '{"who": "Ann"}'}}
    called = [*messages, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "done"}]
    assert '"arguments": {"who": "Ann"}' in template.text({"messages": called}, [_tool("greet")])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"messages": []},
        {"messages": "hello"},
        {"messages": [7]},
        {"messages": [{"role": "king", "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "function", "content": "the template raises"}]},
        {"messages": [{"role": "assistant", "tool_calls": [{}]}]},
        {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
        {"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"tokenize": True}},
        {"messages": [{"role": "user", "content": "x"}], "continue_final_message": True, "add_generation_prompt": True},
    ],
)
def test_conversations_that_are_none_are_refused(letters: Vocabulary, fields: dict[str, Any]) -> None:
    with pytest.raises(Refusal) as caught:
        Template(letters).text(fields, None)
    assert caught.value.status == 400 and caught.value.message
