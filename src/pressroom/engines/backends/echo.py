"""A fake engine that streams what it is told: for tests, demonstrations and benchmarks. It needs no weights.

A token is a word. Without options it says the last user message (or the prompt) back. Options of a deployment:
`text` (what to say), `tokens` (how many words, repeating the text), `delay_s` between words, `first_delay_s` before the
first, `keep_alive_s` and `keep_alive_max` (when it closes an idle, or much used, connection).

On the wire it behaves as llama.cpp's server does: the same frames, the same error for a prompt over the context, a
header block that ends with `Keep-Alive: timeout=5, max=100`, connections that close as it says, and work that stops
when the client leaves. To a client that only closes its side it says what the answer came to so far. `GET /health`
counts requests, those cancelled, and those that run; `GET /counts` counts the tokens of all that were worked on, to the
word, also where nobody heard of them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

from pressroom.engines import _echo_answers as answers
from pressroom.engines import child
from pressroom.engines.base import Capabilities
from pressroom.engines.options import Known, Option, number, whole, wrong_option
from pressroom.engines.process import ProcessEngine

_SECONDS = number("a number, at least 0", lambda value: 0 <= value < 1e9)
_OPTIONS: Known = {
    "text": Option("text", lambda value: isinstance(value, str)),
    "tokens": whole(0),
    "delay_s": _SECONDS,
    "first_delay_s": _SECONDS,
    "keep_alive_s": _SECONDS,
    "keep_alive_max": whole(0),
}
# Frames written at once before the loop gets a turn: a client that leaves is noticed in between.
_BURST = 64


class Backend(ProcessEngine):
    """An echo in a process of its own."""

    capabilities = Capabilities(says_counts=True)
    requires = ("httptools", "orjson", "uvloop")
    options = _OPTIONS


class EchoServer:
    """The echo inside an event loop, for a test that needs no process of its own: `listen`, then `close`."""

    def __init__(self, name: str, *, context: int = 0, options: dict[str, Any] | None = None) -> None:
        given = options or {}
        self.name = name
        self.context = context
        self.text: str | None = given.get("text")
        self.tokens: int | None = given.get("tokens")
        self.delay_s = float(given.get("delay_s", 0.0))
        self.first_delay_s = float(given.get("first_delay_s", 0.0))
        self.keep_alive_s = float(given.get("keep_alive_s", 5))
        self.keep_alive_max = int(given.get("keep_alive_max", 100))
        self.requests = self.cancelled = self.active = self.opened = 0
        self.worked_on = self.prompt_tokens = self.completion_tokens = 0
        self.port = 0
        self._server: asyncio.Server | None = None

    async def listen(self) -> int:
        """Open a free loopback port and return it."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, backlog=2048)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self.port

    def close(self) -> None:
        """Accept no more connections."""
        if self._server is not None:
            self._server.close()

    def words(self, last: str, limit: int | None, stop: Sequence[str] = ()) -> tuple[tuple[str, ...], str]:
        """What to say to `last` in at most `limit` words and before any of `stop`, and the finish reason."""
        text = self.text if self.text is not None else last
        for each in stop:
            text = text.partition(each)[0] if each else text
        words = text.split() or ([""] if stop else ["…"])
        if self.tokens is not None:
            words = (words * (self.tokens // len(words) + 1))[: self.tokens]
        cut = limit is not None and limit < len(words)
        return tuple(words[:limit] if cut else words), "length" if cut else "stop"


class _Work:
    """An answer under way: what was asked, and how much of it was made."""

    def __init__(self, prompt: int, words: int, model: str, *, chat: bool, stream: bool) -> None:
        self.prompt = prompt
        self.words = words
        self.model = model
        self.chat = chat
        self.stream = stream
        self.frames = 0
        self.began = time.monotonic()

    def made(self, server: EchoServer) -> int:
        """Words so far: of a stream those that were written, else those that there was time for."""
        if self.stream:
            made = self.frames - self.chat  # a chat begins with a frame that has no word
        else:
            elapsed = time.monotonic() - self.began - server.first_delay_s
            made = int(elapsed / server.delay_s) if server.delay_s else 0
        return max(0, min(made, self.words))

    def cut(self, said: int) -> bytes:
        """How it ends where the client has closed its side."""
        import orjson

        kind = ("chat.completion" if self.chat else "text_completion") + (".chunk" if self.chat and self.stream else "")
        return orjson.dumps({
            "choices": [], "created": int(time.time()), "id": "chatcmpl-echo" if self.chat else "cmpl-echo",
            "model": self.model, "object": kind, "usage": answers.counts(self.prompt, said), "cut": True,
        })  # fmt: skip


class _Connection(asyncio.Protocol):
    def __init__(self, server: EchoServer) -> None:
        import httptools

        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._body = b""
        self._transport: asyncio.Transport | None = None
        self._served = 0
        self._work: _Work | None = None
        self._pending: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writable = True
        self._used = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are, without saying so
        self._server.opened += 1
        self._used = time.monotonic()
        self._watch_idle()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        self._stop()

    def eof_received(self) -> bool:
        work, begun = self._work, self._work is not None and self._work.frames > 0
        said = self._stop()
        if work is None or self._transport is None:
            return False
        body = work.cut(said)
        if work.stream:
            head = b"" if begun else _head(200, None, b"Connection: close\r\n")
            self._write(
                head + answers.framed(b"data: " + body + b"\n\n") + answers.framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
            )
        else:
            self._write(_head(200, len(body), b"Connection: close\r\n") + body)
        self._transport.close()
        return True  # closing, but not before that is written

    def _stop(self) -> int:
        """Nothing more is made of what is under way; how many words there were."""
        work, self._work, self._pending = self._work, None, None
        if work is None:
            return 0
        said = work.made(self._server)
        self._server.active -= 1
        self._server.cancelled += 1
        self._server.completion_tokens += said
        return said

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        pending, self._pending = self._pending, None
        if pending is not None:
            pending()

    def data_received(self, data: bytes) -> None:
        import httptools

        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self._transport is not None:
                self._transport.abort()

    def on_message_begin(self) -> None:
        self._path = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        server = self._server
        self._served += 1
        if self._path == b"/v1/chat/completions":
            self._complete(chat=True)
        elif self._path == b"/v1/completions":
            self._complete(chat=False)
        elif self._path == b"/tokenize":
            self._count()
        elif self._path == b"/health":
            counts = {name: getattr(server, name) for name in ("requests", "cancelled", "active", "opened")}
            self._answer(200, {"status": "ok", **counts})
        elif self._path == b"/counts":
            counts = {name: getattr(server, name) for name in ("prompt_tokens", "completion_tokens")}
            self._answer(200, {"requests": server.worked_on, **counts})
        elif self._path == b"/v1/models":
            self._answer(200, {"object": "list", "data": [{"id": server.name, "object": "model", "owned_by": "echo"}]})
        else:
            self._answer(404, _error(404, "File Not Found", "not_found_error"))

    def _count(self) -> None:
        """How many tokens a prompt has, as vLLM's server says it."""
        import orjson

        try:
            asked = orjson.loads(self._body)
            said = (
                [_text_of(each["content"]) for each in asked["messages"]] if "messages" in asked else [asked["prompt"]]
            )
            self._answer(200, {"count": sum(len(text.split()) for text in said)})
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            self._answer(400, _error(400, f"not a prompt this echo understands: {error!r}", "invalid_request_error"))

    def _complete(self, *, chat: bool) -> None:
        import orjson

        server = self._server
        server.requests += 1
        try:
            asked = orjson.loads(self._body)
            if chat:
                said = [_text_of(message["content"]) for message in asked["messages"]]
                last = next(
                    (_text_of(m["content"]) for m in reversed(asked["messages"]) if m["role"] == "user"), said[-1]
                )
            else:
                last = _text_of(asked["prompt"])
                said = [last]
            limit = asked.get("max_completion_tokens") or asked.get("max_tokens")
            stop = asked.get("stop") or ()
            stop = [stop] if isinstance(stop, str) else [str(each) for each in stop]
            stream, usage = bool(asked.get("stream")), (asked.get("stream_options") or {}).get("include_usage")
        except (orjson.JSONDecodeError, KeyError, TypeError, IndexError, AttributeError) as error:
            self._answer(400, _error(400, f"not a request this echo understands: {error!r}", "invalid_request_error"))
            return
        prompt = sum(len(text.split()) for text in said)
        if server.context and prompt >= server.context:
            message = f"request ({prompt} tokens) exceeds the available context size ({server.context} tokens)"
            error_body = _error(400, message, "exceed_context_size_error")
            error_body["error"].update(n_prompt_tokens=prompt, n_ctx=server.context)
            self._answer(400, error_body)
            return
        words, finish = server.words(last, limit, stop)
        server.active += 1
        server.worked_on += 1
        server.prompt_tokens += prompt
        self._work = _Work(prompt, len(words), server.name, chat=chat, stream=stream)
        if stream:
            frames = answers.frames(words, finish, server.name, prompt, chat, bool(usage))
            self._later(server.first_delay_s, lambda: self._begin(frames))
        else:
            body = answers.whole(words, finish, server.name, prompt, chat)
            delay = server.first_delay_s + server.delay_s * len(words)
            self._later(delay, lambda: self._finish(_head(200, len(body), self._keep_alive()) + body))

    def _begin(self, frames: tuple[bytes, ...]) -> None:
        self._write(_head(200, None, self._keep_alive()))
        self._stream(frames, 0)

    def _stream(self, frames: tuple[bytes, ...], at: int) -> None:
        upto = at + (1 if self._server.delay_s else _BURST)
        if upto >= len(frames) - 1:  # the empty chunk has no time of its own
            self._finish(b"".join(frames[at:]))
            return
        assert self._work is not None
        self._work.frames = upto
        self._write(b"".join(frames[at:upto]))
        if self._writable:
            self._later(self._server.delay_s, lambda: self._stream(frames, upto), at_once=False)
        else:
            self._pending = lambda: self._stream(frames, upto)

    def _finish(self, data: bytes) -> None:
        assert self._work is not None
        self._server.completion_tokens += self._work.words
        self._work = None
        self._write(data)
        self._server.active -= 1
        self._done()

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        import orjson

        body = orjson.dumps(value)
        # llama.cpp closes after an error.
        if status != 200:
            self._served = self._server.keep_alive_max
        self._write(_head(status, len(body), self._keep_alive()) + body)
        self._done()

    def _done(self) -> None:
        self._used = time.monotonic()
        if self._served >= self._server.keep_alive_max and self._transport is not None:
            self._transport.close()

    def _keep_alive(self) -> bytes:
        server = self._server
        if self._served >= server.keep_alive_max:
            return b"Connection: close\r\n"
        return b"Keep-Alive: timeout=%d, max=%d\r\n" % (max(1, int(server.keep_alive_s)), server.keep_alive_max)

    def _later(self, delay_s: float, step: Callable[[], None], *, at_once: bool = True) -> None:
        """Do the next step of what is under way after the delay, unless the client has left."""
        if not delay_s and at_once:
            step()
            return
        loop, work = asyncio.get_running_loop(), self._work
        loop.call_later(delay_s, lambda: step() if self._work is work else None)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _watch_idle(self) -> None:
        if self._transport is None:
            return
        left = self._used + self._server.keep_alive_s - time.monotonic()
        if self._work is not None:
            left = self._server.keep_alive_s
        if left <= 0:
            self._transport.close()
        else:
            self._timer = asyncio.get_running_loop().call_later(left, self._watch_idle)


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(part if isinstance(part, str) else str(part["text"]) for part in content)
    raise TypeError(f"content of type {type(content).__name__}")


def _error(code: int, message: str, kind: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "type": kind}}


def _head(status: int, length: int | None, last: bytes) -> bytes:
    lines = {200: b"200 OK", 400: b"400 Bad Request", 404: b"404 Not Found"}
    if length is None:
        body = b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    else:
        body = b"Content-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n" % length
    return b"HTTP/1.1 %b\r\nServer: echo\r\n%b%b\r\n" % (lines[status], body, last)


def main() -> None:
    """The engine's process."""
    import uvloop

    spec = child.read_spec()
    wrong = wrong_option("echo", spec["options"], _OPTIONS)
    if wrong is not None:
        child.failed(*wrong)
    server = EchoServer(spec["name"], context=int(spec["context"]), options=spec["options"])
    listening = threading.Event()

    async def serve() -> None:
        await server.listen()
        listening.set()
        await asyncio.Event().wait()

    # The main thread waits for the parent; signals arrive there.
    threading.Thread(target=lambda: uvloop.run(serve()), name="echo", daemon=True).start()
    listening.wait()
    child.ready(host="127.0.0.1", port=server.port, context=server.context, version="echo 1")
    child.wait_for_parent()


if __name__ == "__main__":
    main()
