"""The texts of a request and its answer, taken out of what went over the wire."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

#: Characters that a language is found by.
EXCERPT = 400
#: Characters that are read of a text, and those of them that are kept.
READ = 262_144
KEPT = 65_536

_DATA = b"data:"


def excerpt_of(fields: Any) -> str:
    """The beginning of what the user said last: enough to tell its language."""
    if type(fields) is not dict:
        return fields[:EXCERPT] if type(fields) is str else ""
    messages = fields.get("messages")
    if type(messages) is list:
        for message in reversed(messages):
            if type(message) is dict and message.get("role") == "user":
                content = message.get("content")
                return content[:EXCERPT] if type(content) is str else _joined(_parts(content), EXCERPT)
        return ""
    for name in ("prompt", "input", "text_input"):
        if name in fields:
            said = fields[name]
            return said[:EXCERPT] if type(said) is str else _joined(_parts(said), EXCERPT)
    return ""


def text_of(fields: Any, most: int = READ) -> str:
    """All text of a request, at most so many characters of it: the messages of a chat as paragraphs of `role: text`,
    or the prompts."""
    if type(fields) is not dict:
        return fields[:most] if type(fields) is str else ""
    messages = fields.get("messages")
    if type(messages) is list:
        return _joined(_said(messages), most, between="\n\n")
    for name in ("prompt", "input", "text_input"):
        if name in fields:
            return _joined(_parts(fields[name]), most, between="\n\n")
    return ""


def answer_of(raw: bytes, most: int = READ) -> str:
    """The text of an answer as an engine gave it: the events of a stream, a JSON body, or plain text."""
    if raw.lstrip()[:5] == _DATA:
        return _joined(_streamed(raw), most)
    if raw.lstrip()[:1] == b"{":
        try:
            return _joined(_chosen(orjson.loads(raw)), most, between="\n\n")
        except orjson.JSONDecodeError:
            pass  # cut off, or text that begins with a brace
    return raw[: 4 * most].decode("utf-8", "replace")[:most]


def clean(text: str) -> str:
    """Without what a database cannot keep: NUL, and halves of characters."""
    if "\0" in text:
        text = text.replace("\0", "")
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _said(messages: list[Any]) -> Iterator[str]:
    for message in messages:
        if type(message) is dict:
            text = "".join(_parts(message.get("content")))
            if text:
                yield f"{message.get('role')}: {text}"


def _parts(content: Any) -> Iterator[str]:
    """The texts in a content of parts, or in a list of prompts; token numbers and images have none."""
    if type(content) is str:
        yield content
    elif type(content) is list:
        for part in content:
            if type(part) is str:
                yield part
            elif type(part) is dict and type(part.get("text")) is str:
                yield part["text"]


def _streamed(raw: bytes) -> Iterator[str]:
    for line in raw.split(b"\n"):
        if line.startswith(_DATA):
            try:
                yield from _chosen(orjson.loads(line[len(_DATA) :]))
            except orjson.JSONDecodeError:
                continue  # [DONE], or an event that was cut off


def _chosen(body: Any) -> Iterator[str]:
    if type(body) is not dict:
        return
    for name in ("text_output",):
        if type(body.get(name)) is str:
            yield body[name]
    choices = body.get("choices")
    for choice in choices if type(choices) is list else ():
        if type(choice) is not dict:
            continue
        said = choice.get("delta") or choice.get("message")
        text = said.get("content") if type(said) is dict else choice.get("text")
        if type(text) is str:
            yield text


def _joined(parts: Iterator[str], most: int, *, between: str = "") -> str:
    found: list[str] = []
    room = most
    for part in parts:
        if found and between:
            found.append(between)
            room -= len(between)
        found.append(part[:room] if len(part) > room else part)
        room -= len(part)
        if room <= 0:
            break
    return "".join(found)[:most]
