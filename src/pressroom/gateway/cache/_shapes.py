"""A whole answer made of a stream, and a stream made of a whole answer, in OpenAI's shapes.

A stream is put together only where nothing of it would be lost: what is not understood is not kept.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import orjson

from pressroom.gateway import _sse
from pressroom.gateway.protocols.openai import CHAT, EMBEDDING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pressroom.gateway.protocols.openai import Endpoint

Record = dict[str, Any]

_COMPLETE = frozenset(("stop", "length", "tool_calls"))
# New for every answer, true of the run of an engine only, or padding.
_PASSING = frozenset(("id", "created", "timings", "obfuscation"))
# What is before a text, the text as JSON, what is after it.
_TEXT = re.compile(rb'(.*?"(?:delta"\s*:\s*\{\s*"content|text)"\s*:\s*)("(?:[^"\\]|\\.)*")(.+)', re.DOTALL)
_JOINED = ("content", "reasoning", "reasoning_content", "refusal")


class Unfit(ValueError):
    """This cannot be kept."""


def complete(record: Any, endpoint: Endpoint, answers: int) -> bool:
    """Whether a whole answer is one, and not cut off or refused."""
    if type(record) is not dict or record.get("error") is not None:
        return False
    if endpoint is EMBEDDING:
        data = record.get("data")
        return type(data) is list and bool(data) and all(type(one) is dict and one.get("embedding") for one in data)
    choices = record.get("choices")
    if type(choices) is not list or len(choices) != answers:
        return False
    inner, kind = ("message", dict) if endpoint is CHAT else ("text", str)
    return all(
        type(choice) is dict and type(choice.get(inner)) is kind and choice.get("finish_reason") in _COMPLETE
        for choice in choices
    )


def kept(record: Record) -> bytes:
    """What of a whole answer is the same each time it is given, as JSON."""
    made = orjson.dumps({name: value for name, value in record.items() if name not in _PASSING})
    # What orjson gives holds on to the memory it was written in, which is often ten times as much: a copy does not.
    return bytes(memoryview(made))


# From a stream.


def taken_apart(stream: bytes) -> list[bytes]:
    """The data of the events of a whole stream."""
    if not stream.endswith(b"\n\n"):
        stream += b"\n\n"  # some vendors leave the last line without its end
    count = stream.count(b"\n\ndata: ")
    if stream.startswith(b"data: ") and b"\r" not in stream and stream.count(b"\n") == 2 * count + 2:
        return stream[6:-2].split(b"\n\ndata: ")  # one line an event and nothing else, as nearly all streams are
    return _sse.Events().feed(stream)


class Assembly:
    """Puts the events of a stream together: `take` each, then `whole`."""

    __slots__ = ("_after", "_before", "_chat", "_choices", "_done", "_said", "_top", "_usage")

    def __init__(self, endpoint: Endpoint) -> None:
        # What is around the text of an event that had nothing else to say, and where its text went. Most events are
        # like the one before them but for the text; reading only that is four times as fast.
        self._before, self._after = b"", b""
        self._said: list[str] = []
        self._chat = endpoint is CHAT
        self._top: Record = {}
        self._choices: dict[int, _Choice] = {}
        self._usage: Record | None = None
        self._done = False

    def take(self, event: bytes) -> None:
        """The next event.

        Raises:
            Unfit: something would be lost, or the stream is broken.
        """
        if self._done:
            raise Unfit("something follows the end")
        if event == _sse.DONE:
            self._done = True
            return
        before, after = self._before, self._after
        if (
            before
            and event.startswith(before)
            and event.endswith(after)
            and self._more(event[len(before) : -len(after)])
        ):
            return
        record = orjson.loads(event)
        for name, value in record.items():
            if name == "choices":
                for choice in value:
                    self._choice(choice)
            elif name == "usage":
                self._usage = value or self._usage
            elif name == "timings":
                if self._usage is None and type(value) is dict:
                    self._usage = _usage(value)
            elif name in _PASSING or value is None:
                continue
            elif name == "error" or self._top.setdefault(name, value) != value:
                raise Unfit(f"{name} is an error, or changes within the stream")
        self._frame(event, record)

    def _more(self, text: bytes) -> bool:
        """Take the text of an event that is like the one before; False where it is more than a text."""
        if text[:1] != b'"':
            return False
        try:
            self._said.append(orjson.loads(text))
        except orjson.JSONDecodeError:
            return False
        return True

    def _frame(self, event: bytes, record: Record) -> None:
        """Remember what is around the text of an event that has just been taken, if nothing else in it adds to it."""
        found = _TEXT.match(event)
        choices = record.get("choices")
        if found is None or not choices or len(choices) != 1 or "usage" in record or "timings" in record:
            return
        choice = choices[0]
        inner, name = (choice.get("delta"), "content") if self._chat else (choice, "text")
        if self._chat and len(inner) != 1:
            return
        if choice.get("finish_reason") is None and choice.get("logprobs") is None:
            said = inner.get(name)
            if type(said) is str and said == orjson.loads(found[2]):
                self._before, self._after = found[1], found[3]
                self._said = self._choices[choice.get("index", 0)].said(name)

    def whole(self, usage: Record | None = None) -> Record:
        """The whole answer. `usage` is for a stream that did not say it itself; without both it has none.

        Raises:
            Unfit: it is not complete.
        """
        choices = [self._choices[index] for index in sorted(self._choices)]
        if not self._done or not choices or self._choices.keys() != set(range(len(choices))):
            raise Unfit("it is not complete")
        self._top["object"] = "chat.completion" if self._chat else "text_completion"
        record = {**self._top, "choices": [choice.whole() for choice in choices]}
        if self._usage or usage:
            record["usage"] = self._usage or usage
        return record

    def _choice(self, given: Record) -> None:
        index = given.get("index", 0)
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Choice(index, chat=self._chat)
        choice.take(given)


class _Choice:
    """One choice of a stream."""

    __slots__ = ("_calls", "_chat", "_finish", "_index", "_logprobs", "_more", "_said")

    def __init__(self, index: int, *, chat: bool) -> None:
        self._index = index
        self._chat = chat
        self._said: dict[str, list[str]] = {}
        self._calls: dict[int, Record] = {}
        self._logprobs: dict[str, list[Any]] | None = None
        self._finish: str | None = None
        self._more: Record = {}

    def take(self, given: Record) -> None:
        for name, value in given.items():
            if value is None or name == "index":
                continue
            if name == "delta" and self._chat:
                for part, said in value.items():
                    if said is not None:
                        self._delta(part, said)
            elif name == "text" and not self._chat:
                self._delta(name, value)
            elif name == "finish_reason":
                self._finish = value
            elif name == "logprobs":
                self._extend(value)
            elif type(value) in (str, int) and self._more.setdefault(name, value) == value:
                pass  # vLLM's stop_reason
            else:
                raise Unfit(f"{name} of a choice is not understood")

    def said(self, name: str) -> list[str]:
        """The pieces of what was said under this name, to add to."""
        return self._said[name]

    def _delta(self, name: str, said: Any) -> None:
        if name == "tool_calls":
            for call in said:
                self._call(call)
        elif name == "role":
            if said != "assistant":
                raise Unfit("it is not the assistant who speaks")
        elif (name in _JOINED or name == "text") and type(said) is str:
            pieces = self._said.get(name)
            if pieces is None:
                self._said[name] = [said]
            else:
                pieces.append(said)
        else:
            raise Unfit(f"{name} of a delta is not understood")

    def _call(self, given: Record) -> None:
        call = self._calls.setdefault(given["index"], {"id": "", "type": "function", "name": "", "arguments": []})
        function = given.get("function") or {}
        for name, value in (("id", given.get("id")), ("type", given.get("type")), ("name", function.get("name"))):
            if value:
                if call[name] and call[name] != value:
                    raise Unfit(f"the {name} of a tool call changes")
                call[name] = value
        if function.get("arguments"):
            call["arguments"].append(function["arguments"])
        if not given.keys() <= {"index", "id", "type", "function"} or not function.keys() <= {"name", "arguments"}:
            raise Unfit("a tool call has more to it")

    def _extend(self, given: Record) -> None:
        if self._logprobs is None:
            self._logprobs = {}
        for name, values in given.items():
            if values is not None:
                self._logprobs.setdefault(name, []).extend(values)

    def whole(self) -> Record:
        if self._finish not in _COMPLETE:
            raise Unfit(f"it ended with {self._finish}")
        logprobs: Any = self._logprobs
        choice: Record = {"index": self._index}
        if self._chat:
            message: Record = {"role": "assistant"}
            message["content"] = "".join(self._said.get("content", ())) or (None if self._calls else "")
            for name in _JOINED[1:]:
                if name in self._said:
                    message[name] = "".join(self._said[name])
            if self._calls:
                message["tool_calls"] = [self._called(index) for index in sorted(self._calls)]
            choice["message"] = message
        else:
            choice["text"] = "".join(self._said.get("text", ()))
            if logprobs and "text_offset" in logprobs:
                logprobs["text_offset"] = _offsets(logprobs["tokens"])
        return {**choice, "logprobs": logprobs, **self._more, "finish_reason": self._finish}

    def _called(self, index: int) -> Record:
        call = self._calls[index]
        if not call["id"] or not call["name"]:
            raise Unfit("a tool call has no id or no name")
        function = {"name": call["name"], "arguments": "".join(call["arguments"])}
        return {"id": call["id"], "type": call["type"], "function": function}


def _usage(timings: Record) -> Record | None:
    """Usage from llama.cpp's `timings`, which a stream of it has also where no usage was asked for."""
    read, cached, written = (timings.get(name, 0) for name in ("prompt_n", "cache_n", "predicted_n"))
    if not all(type(count) is int and count >= 0 for count in (read, cached, written)) or not written:
        return None
    return {
        "prompt_tokens": read + cached,
        "completion_tokens": written,
        "total_tokens": read + cached + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _offsets(tokens: list[str]) -> list[int]:
    offsets, at = [], 0
    for token in tokens:
        offsets.append(at)
        at += len(token)
    return offsets


# To a stream.


def events(record: Record, endpoint: Endpoint, *, id: str, created: int, with_usage: bool) -> bytes:
    """A whole answer as the bytes of a stream, from the role to `[DONE]`."""
    chat = endpoint is CHAT
    top = {name: value for name, value in record.items() if name not in ("choices", "usage", "object")}
    frame = {"id": id, "object": "chat.completion.chunk" if chat else "text_completion", "created": created, **top}
    pieces = _chat_pieces if chat else _text_pieces
    out = [_sse.event({**frame, "choices": [piece]}) for choice in record["choices"] for piece in pieces(choice)]
    if with_usage:
        out.append(_sse.event({**frame, "choices": [], "usage": record["usage"]}))
    out.append(_sse.LAST)
    return b"".join(out)


def _chat_pieces(choice: Record) -> Iterator[Record]:
    index, message = choice["index"], choice["message"]
    content, calls, logprobs = message.get("content"), message.get("tool_calls"), choice.get("logprobs")
    more = {k: v for k, v in message.items() if v and k not in ("role", "tool_calls", *_JOINED)}
    first = {"role": "assistant", "content": None if calls and not content else "", **more}
    yield {"index": index, "delta": first, "finish_reason": None}
    thought = {name: message[name] for name in _JOINED[1:] if message.get(name)}
    if thought:
        yield {"index": index, "delta": thought, "finish_reason": None}
    if content:
        said = {"index": index, "delta": {"content": content}, "finish_reason": None}
        yield said if logprobs is None else {**said, "logprobs": logprobs}
        logprobs = None
    if calls:
        delta = {"tool_calls": [{"index": number, **call} for number, call in enumerate(calls)]}
        yield {"index": index, "delta": delta, "finish_reason": None}
    yield {**_ending(choice), **({} if logprobs is None else {"logprobs": logprobs}), "delta": {}}


def _text_pieces(choice: Record) -> Iterator[Record]:
    said = {"index": choice["index"], "text": choice["text"], "finish_reason": None}
    yield {**said, "logprobs": choice.get("logprobs")}
    yield {**_ending(choice), "text": "", "logprobs": None}


def _ending(choice: Record) -> Record:
    return {name: value for name, value in choice.items() if name not in ("message", "text", "logprobs")}
