"""What the echo answers, in the shapes that llama.cpp's server has."""

from __future__ import annotations

import functools
import time
from typing import Any


def counts(prompt: int, said: int) -> dict[str, Any]:
    """The usage of an answer."""
    usage = {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}
    return {**usage, "prompt_tokens_details": {"cached_tokens": 0}}


def _timings(prompt: int, said: int) -> dict[str, Any]:
    return {"cache_n": 0, "prompt_n": prompt, "predicted_n": said}


@functools.lru_cache(maxsize=32)
def whole(words: tuple[str, ...], finish: str, model: str, prompt: int, chat: bool) -> bytes:
    """An answer that is not streamed."""
    import orjson

    text = " ".join(words)
    choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text, "logprobs": None}
    return orjson.dumps({
        "choices": [{"finish_reason": finish, "index": 0, **choice}],
        "created": int(time.time()),
        "model": model,
        "object": "chat.completion" if chat else "text_completion",
        "usage": counts(prompt, len(words)),
        "id": "chatcmpl-echo" if chat else "cmpl-echo",
        "timings": _timings(prompt, len(words)),
    })  # fmt: skip


@functools.lru_cache(maxsize=32)
def frames(words: tuple[str, ...], finish: str, model: str, prompt: int, chat: bool, usage: bool) -> tuple[bytes, ...]:
    """The chunks of a streamed answer, framed: each event a chunk, as llama.cpp sends them, and the empty one."""
    import orjson

    base = {
        "created": int(time.time()),
        "id": "chatcmpl-echo" if chat else "cmpl-echo",
        "model": model,
        "object": "chat.completion.chunk" if chat else "text_completion",
    }

    def event(piece: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
        choice = {
            "finish_reason": reason,
            "index": 0,
            **({"delta": piece} if chat else {"text": piece.get("content", "")}),
        }
        return b"data: " + orjson.dumps({"choices": [choice], **base, **more}) + b"\n\n"

    timings = _timings(prompt, len(words))
    events = [event({"role": "assistant", "content": None})] if chat else []
    events += [event({"content": word if n == 0 else f" {word}"}) for n, word in enumerate(words)]
    events.append(event({}, finish, timings=timings))
    if usage:
        last: dict[str, Any] = {"choices": [], **base, "usage": counts(prompt, len(words)), "timings": timings}
        events.append(b"data: " + orjson.dumps(last) + b"\n\n")
    events.append(b"data: [DONE]\n\n")
    return (*map(framed, events), b"0\r\n\r\n")


def framed(data: bytes) -> bytes:
    """A chunk of a body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
