"""Files of results: one JSON object a line, appended as they come, and the truth about what is done.

What a killed writer left is mended when the file is opened: everything up to the first line that is not whole counts,
the rest is cut off.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from pressroom.gateway.batches._disk import breathe, writing
from pressroom.gateway.batches.base import BatchError, Outcome
from pressroom.kernel.disk import sync

_BREATH_LINES = 64


class ResultFile:
    """Appends to one file. Not thread-safe. Raises StoreError where the disk refuses."""

    def __init__(self, path: Path, *, fd: int | None = None) -> None:
        """`fd`, where it is given, is the file already open for reading and writing, and closed by `close`."""
        self._path = path
        with writing(path):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644) if fd is None else fd
        self._end = 0

    def recover(self, seen: Callable[[dict[str, Any]], None], *, careful: bool = False) -> None:
        """Tell `seen` every result that is there, and cut off what is not one.

        Raises:
            BatchError: `careful`, and there are results behind what is not one: nobody was killed there, so nothing is
                cut off.
        """
        self._end = 0
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(0)
            for number, line in enumerate(file, start=1):
                record = _whole(line)
                if record is None:
                    if careful and any(_whole(later) is not None for later in file):
                        raise BatchError(
                            f"line {number} of {self._path} is not a result, and there are results behind it",
                            hint="Remove that line, or begin a new file; nothing in this one was changed.",
                            line=number,
                        )
                    break
                seen(record)
                self._end += len(line)
                if not number % _BREATH_LINES:
                    breathe()
        with writing(self._path):
            os.ftruncate(self._fd, self._end)

    def append(self, outcomes: Iterable[Outcome]) -> None:
        """Add these, durably: all of them are on the disk when it returns. Where the disk refuses, none is there."""
        data = b"".join(map(_encoded, outcomes))
        if not data:
            return
        try:
            with writing(self._path):
                view, at = memoryview(data), self._end
                while view:
                    count = os.pwrite(self._fd, view, at)
                    view, at = view[count:], at + count
                sync(self._fd)
        except BaseException:
            with suppress(OSError):  # the next one to open it cuts it off
                os.ftruncate(self._fd, self._end)
            raise
        self._end += len(data)

    @property
    def size(self) -> int:
        return self._end

    def close(self) -> None:
        os.close(self._fd)


def _encoded(outcome: Outcome) -> bytes:
    try:
        return orjson.dumps(outcome.record()) + b"\n"
    except orjson.JSONEncodeError:  # deeper than what JSON is written with: no engine of sound mind sends it
        error = {"code": "unreadable_answer", "message": "The answer cannot be written as JSON."}
        return orjson.dumps(Outcome(outcome.line, 0, error=error).record()) + b"\n"


def _whole(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    known = isinstance(record, dict) and isinstance(record.get("id"), str) and "response" in record
    return record if known else None
