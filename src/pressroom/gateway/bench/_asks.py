"""One request of a benchmark: told of each piece by callbacks, it notes when, and little else."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from pressroom.gateway._response import Head
from pressroom.gateway._usage import token_counts
from pressroom.gateway.upstream import Call, Failure

# A piece that says something. A piece without words comes before the first token, or after the last.
_SAID = re.compile(rb'"(?:content|text|reasoning_content)": ?"(?!")|"tool_calls": ?\[')
_CACHED = re.compile(rb'"cached_tokens"\s*:\s*(\d{1,12})')
_CODE = re.compile(rb'"code"\s*:\s*"([^"]{1,80})"')
_MESSAGE = re.compile(rb'"message"\s*:\s*"((?:[^"\\]|\\.){0,300})')
# Enough for the last events of a stream, with its usage.
_TAIL = 4_096
_ERROR_LIMIT = 65_536


class Ask(Call):
    """One request. `times` has when each piece came that said something, in seconds of `time.perf_counter`."""

    __slots__ = ("_buffer", "_ended", "_streamed", "began", "cached", "ended", "error", "output", "prompt", "times")

    def __init__(self, ended: Callable[[Ask], None]) -> None:
        super().__init__()
        self._ended = ended
        self._buffer = b""
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
        if self._buffer:
            data = self._buffer + data
        if self.error is not None:
            self._buffer = data[:_ERROR_LIMIT]
        elif self._streamed:
            self._pieces(data)
        else:
            self._buffer = data

    def _pieces(self, data: bytes) -> None:
        """Note what came. The end of it is kept: an event may be cut, and the last ones have the usage."""
        end = data.rfind(b"\n\n") + 2
        begin = 0
        if self.times:  # the kept events were counted
            begin = self._counted(data)
        found = len(_SAID.findall(data, begin, end)) if end > begin else 0
        if found:
            now = time.perf_counter()
            self.times.extend([now] * found)
        self._buffer = data

    def _counted(self, data: bytes) -> int:
        raise NotImplementedError

    def on_end(self) -> None:
        self.ended = time.perf_counter()
        self._ended(self)

    def on_failed(self, failure: Failure, detail: str) -> None:
        self.ended = time.perf_counter()
        self.error = (failure.value, detail)
        self._ended(self)
