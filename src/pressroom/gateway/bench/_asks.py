"""One request of a benchmark: told of each piece by callbacks, it notes when, and little else."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import orjson

from pressroom.gateway._response import Head
from pressroom.gateway._usage import token_counts
from pressroom.gateway.upstream import Call, Failure

# A piece that says something. A piece without words comes before the first token, or after the last.
_SAID = re.compile(rb'"(?:content|text|reasoning_content)": ?"(?!")|"tool_calls": ?\[')
_CACHED = re.compile(rb'"cached_tokens"\s*:\s*(\d{1,12})')
# Enough for the last events of a stream, with its usage.
_TAIL = 4_096


class Ask(Call):
    """One request. `times` has when each piece came that said something, in seconds of `time.perf_counter`."""

    # fmt: off
    __slots__ = (
        "_body", "_ended", "_rest", "_streamed", "_tail",
        "began", "cached", "ended", "error", "output", "prompt", "times",
    )
    # fmt: on

    def __init__(self, ended: Callable[[Ask], None]) -> None:
        super().__init__()
        self._ended = ended
        self._body: list[bytes] = []
        self._rest = self._tail = b""
        self._streamed = False
        self.began = time.perf_counter()
        self.ended = 0.0
        self.times: list[float] = []
        self.prompt = self.output = self.cached = 0
        #: What went wrong: its kind, and the words.
        self.error: tuple[str, str] | None = None

    def on_head(self, head: Head) -> None:
        self._streamed = head.content_type.startswith(b"text/event-stream")
        if head.status != 200:
            self.error = (str(head.status), "")

    def on_data(self, data: bytes) -> None:
        if not self._streamed:
            self._body.append(data)
            return
        if self._rest:
            data = self._rest + data
        end = data.rfind(b"\n\n") + 2
        if end < 2:
            self._rest = data  # an event that was cut
            return
        if end < len(data):
            self._rest, data = data[end:], data[:end]
        else:
            self._rest = b""
        if found := len(_SAID.findall(data)):
            now = time.perf_counter()
            self.times.extend([now] * found)
        self._tail = data if len(data) >= _TAIL else (self._tail + data)[-_TAIL:]

    def on_end(self) -> None:
        self.ended = time.perf_counter()
        answer = self._tail if self._streamed else b"".join(self._body)
        if self.error is not None:
            self.error = _problem(self.error[0], answer)
        elif self._streamed and not answer.endswith(b"data: [DONE]\n\n"):
            at = answer.rfind(b'data: {"error"')
            self.error = _problem("stream", answer[at:] if at >= 0 else b"")
        else:
            self.prompt, self.output, _ = token_counts(answer) or (0, 0, 0)
            cached = _CACHED.search(answer, max(0, answer.rfind(b'"usage"')))
            self.cached = int(cached[1]) if cached else 0
        self._body.clear()
        self._rest = self._tail = b""
        self._ended(self)

    def on_failed(self, failure: Failure, detail: str) -> None:
        self.ended = time.perf_counter()
        self.error = (failure.value, detail)
        self._ended(self)


def _problem(kind: str, said: bytes) -> tuple[str, str]:
    """The kind with its code, and the words of an error."""
    try:
        found = orjson.loads(said.removeprefix(b"data: "))["error"]
        code, message = found.get("code") or found.get("type"), str(found["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        code, message = None, said[:300].decode(errors="replace") or "it ended before its time"
    return f"{kind} {code}" if code else kind, message
