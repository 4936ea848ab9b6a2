"""The texts of requests: for their language, and kept only where that is set, without what is personal or secret."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pressroom.gateway.ledger import Rows
from pressroom.gateway.ledger import _aside as aside_module
from pressroom.gateway.ledger._aside import UNDETERMINED, Aside
from pressroom.gateway.ledger._texts import KEPT, READ, answer_of, clean, excerpt_of, text_of

from .books import row, running, table, workspace

GERMAN = "Wie wird das Wetter morgen in Hamburg, und brauche ich dann einen Regenschirm oder nicht?"
ENGLISH = "What will the weather be like tomorrow in London, and shall I need an umbrella then?"

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "text", "prompt", "input", "type", "choices", "delta"]),
            inner,
        )
    ),
    max_leaves=12,
)


def chat(*said: tuple[str, Any]) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": role, "content": content} for role, content in said]}


def sse(*words: str) -> bytes:
    events = [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in words]
    lines = [
        b'data: {"choices": [{"delta": {"role": "assistant"}}]}',
        *(b"data: " + orjson.dumps(each) for each in events),
    ]
    return b"\n\n".join([*lines, b'data: {"choices": [], "usage": {}}', b"data: [DONE]", b""])


@pytest.mark.parametrize(
    ("fields", "excerpt", "text"),
    [
        (chat(("system", "Be brief."), ("user", "Hello")), "Hello", "system: Be brief.\n\nuser: Hello"),
        (chat(("user", "one"), ("assistant", "two"), ("user", "three"), ("tool", "{}")), "three", None),
        (
            chat(("user", [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}])),
            "ab",
            "user: ab",
        ),
        (chat(("system", "x")), "", "system: x"),
        (chat(("user", "y" * 900)), "y" * 400, "user: " + "y" * 900),
        ({"prompt": "Once"}, "Once", "Once"),
        ({"prompt": ["a", "b"]}, "ab", "a\n\nb"),
        ({"prompt": [1, 2, 3]}, "", ""),
        ({"input": "embed me"}, "embed me", "embed me"),
        ({"text_input": "v2"}, "v2", "v2"),
        ("plain", "plain", "plain"),
        ({}, "", ""),
        (None, "", ""),
    ],
)
def test_what_a_request_says(fields: Any, excerpt: str, text: str | None) -> None:
    assert excerpt_of(fields) == excerpt
    assert text is None or text_of(fields) == text


@given(JSON)
def test_any_fields_have_some_text(fields: Any) -> None:
    assert len(excerpt_of(fields)) <= 400
    assert isinstance(text_of(fields), str)
    assert isinstance(answer_of(repr(fields).encode("utf-8", "replace")), str)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (sse("Hel", "lo", " \N{SNOWMAN}"), "Hello \N{SNOWMAN}"),
        (sse("cut", "off")[:-60], "cut"),
        (b'{"choices": [{"message": {"content": "Yes"}}, {"message": {"content": "No"}}]}', "Yes\n\nNo"),
        (b'{"choices": [{"text": "Yes"}]}', "Yes"),
        (b'{"model_name": "m", "text_output": "Yes"}', "Yes"),
        (b'{"choices": "nonsense"}', ""),
        (b"{ but no JSON", "{ but no JSON"),
        (b"plain \xff", "plain \N{REPLACEMENT CHARACTER}"),
        (b"", ""),
    ],
)
def test_what_an_answer_says(raw: bytes, text: str) -> None:
    assert answer_of(raw).startswith(text) if b"cut" in raw else answer_of(raw) == text


def test_a_text_is_cut_to_what_was_asked_for() -> None:
    fields = chat(*[("user", "z" * 1_000)] * 100)
    assert len(text_of(fields, 12_345)) == 12_345
    assert len(answer_of(sse(*["word "] * 1_000), 99)) == 99
    assert clean("a\0b\ud800c") == "ab?c"


def test_the_language_is_found_and_remembered() -> None:
    asked = []

    def language_of(text: str) -> str:
        asked.append(text)
        return "de" if "Wetter" in text else "en"

    aside = Aside(content="none", language=True, language_of=language_of)
    for number in range(20):
        aside.put(f"r{number}", chat(("user", GERMAN if number % 2 else ENGLISH)), b"")
    aside.work()
    assert [known.language for number in range(20) if (known := aside.take(f"r{number}"))] == ["en", "de"] * 10
    assert len(asked) == 2
    assert aside.take("r0") == ("en", None, None, 0)
    aside.forget("r0")
    assert aside.take("r0") is None
    assert (aside.hurried, aside.left_out) == (0, 0)


def test_languages_take_a_share_of_the_processor_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    spent = [0.0]
    now = [1_000.0]
    monkeypatch.setattr(aside_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(aside_module.time, "sleep", lambda _: None)

    def slow(text: str) -> str:
        spent[0] += 0.05
        return "en"

    aside = Aside(content="none", language=True, language_of=slow, clock=lambda: spent[0])
    for second in range(100):
        now[0] += 1.0
        for number in range(20):
            aside.put(f"{second}.{number}", {"prompt": f"{second} {number}"}, b"")
        aside.work()
    assert 10.0 < spent[0] < 12.0  # a tenth of 100 s, and what was saved up
    assert aside.hurried == 2_000 - round(spent[0] / 0.05)
    assert aside.take("99.19") == (UNDETERMINED, None, None, 0)


def test_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside_module, "_MOST", 50)
    aside = Aside(content="full", language=False)
    for number in range(60):
        aside.put(f"r{number}", {"prompt": "p"}, b"a")
    assert aside.left_out == 10
    aside.work()
    for number in range(60):
        aside.forget(f"r{number}")
    monkeypatch.setattr(aside_module, "_MOST_BYTES", 10_000)
    for number in range(50):
        aside.put(f"s{number}", {"prompt": "p" * 990}, b"a" * 10)
    assert aside.left_out == 50
    aside.work()
    for number in range(50):
        aside.forget(f"s{number}")
    assert aside._came == aside._went
    aside.put("again", {"prompt": "p" * 990}, b"")
    aside.work()
    assert aside.take("again") is not None


def test_a_text_too_long_to_be_looked_through_is_not_kept() -> None:
    aside = Aside(content="redacted", language=False)
    aside.put("long", {"prompt": "p" * (READ + 5)}, b"x" * 2_000_000)
    aside.put("fits", {"prompt": "p " * (KEPT // 2) + "more"}, b"")
    aside.work()
    long, fits = aside.take("long"), aside.take("fits")
    assert long is not None and fits is not None
    assert long.prompt_text == "[TEXT OF MORE THAN 262,144 CHARACTERS NOT KEPT]"
    assert long.answer_text is not None and long.answer_text.startswith("[TEXT OF")
    assert fits.prompt_text is not None and len(fits.prompt_text) == KEPT


def test_a_text_that_cannot_be_redacted_is_not_kept(caplog: pytest.LogCaptureFixture) -> None:
    def broken(text: str) -> str:
        raise ValueError("never thought of that")

    aside = Aside(content="redacted", language=True, language_of=broken, redacted=broken)
    aside.put("a", {"prompt": "call me"}, b"yes")
    aside.work()
    assert aside.take("a") == (UNDETERMINED, None, None, 0)
    assert "cannot be redacted" in caplog.text


SECRET = "Write to alice.example@example.com about it"


@pytest.mark.parametrize("content", ["none", "redacted", "full"])
def test_what_is_kept_is_what_the_setting_says(tmp_path: Path, content: str) -> None:
    with workspace(tmp_path, content=content) as place:
        ledger = running(place)
        ledger.append(row("a", prompt=chat(("user", SECRET)), answer=sse("Mail ", "sent to alice.example@example.com")))
        assert ledger.flush()
        raw = b"".join(path.read_bytes() for path in (place.dir / "ledger").rglob("*.journal"))
        assert b"about it" not in raw and b"alice" not in raw
        [found] = table(place)
        assert ledger.stop()
        if content == "none":
            assert (found["prompt_text"], found["answer_text"]) == (None, None)
        elif content == "full":
            assert found["prompt_text"] == f"user: {SECRET}"
            assert found["answer_text"] == "Mail sent to alice.example@example.com"
        else:
            assert "alice" not in str(found) and "[EMAIL]" in found["prompt_text"] and "[EMAIL]" in found["answer_text"]
            assert found["prompt_text"].endswith("about it")
        place.database.close()
        everything = b"".join(path.read_bytes() for path in place.dir.rglob("*") if path.is_file())
        assert (b"alice" in everything) == (content == "full")


def test_languages_of_real_texts(tmp_path: Path) -> None:
    with workspace(tmp_path) as place:
        ledger = running(place)
        ledger.append(row("de", prompt=chat(("user", GERMAN))))
        ledger.append(row("en", prompt=chat(("user", ENGLISH))))
        ledger.append(row("set", prompt=chat(("user", ENGLISH)), language="fr"))
        ledger.append(row("tokens", prompt={"prompt": [1, 2, 3]}))
        assert ledger.stop()
        assert {each["id"]: each["language"] for each in table(place)} == {
            "de": "de",
            "en": "en",
            "set": "fr",
            "tokens": "",
        }


def test_forgetting_takes_texts_out(tmp_path: Path) -> None:
    with workspace(tmp_path, content="full") as place:
        ledger = running(place)
        for number in range(5):
            ledger.append(row(f"a{number}", user="alice", prompt={"prompt": "hers"}, answer=b"for her"))
        ledger.append(row("b", user="bob", prompt={"prompt": "his"}))
        began = time.monotonic()
        assert Rows(place).forget("alice") == 5  # waits for the rows that are on their way
        assert time.monotonic() - began < 60
        assert Rows(place).forget("alice") == 0
        rows = table(place)
        assert [(each["user"], each["prompt_text"], each["answer_text"]) for each in rows[:5]] == [("", None, None)] * 5
        assert rows[5]["prompt_text"] == "his" and rows[5]["user"]
        assert sum(each["prompt_tokens"] for each in rows) == 600
        ledger.stop()
