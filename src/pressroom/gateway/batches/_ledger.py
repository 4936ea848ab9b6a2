"""What is done of a batch of the server: its two files of results, and what they say."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pressroom.gateway.batches._results import ResultFile
from pressroom.gateway.batches.base import Counts, Line, Outcome

_NUMBER = re.compile(r"batch_req_.*_([0-9a-f]{8,})")


class Ledger:
    """Answers go to `output`, failures to `errors`. Opening it reads both: a request that has a result is done.

    One byte a request is kept in memory. Raises StoreError where the disk refuses.
    """

    def __init__(self, output: Path, errors: Path, *, total: int) -> None:
        self.counts = Counts()
        self._done = bytearray(total)
        self._closed = False
        # `close` may come while a thread that nobody waits for any more is in `take`.
        self._lock = threading.Lock()
        self._output = ResultFile(output)
        self._errors = ResultFile(errors)
        for file in (self._output, self._errors):
            file.recover(self._seen)

    def left(self, lines: Iterable[Line]) -> Iterator[Line]:
        """Those without a result."""
        return (line for line in lines if not self._done[line.number])

    def take(self, outcomes: list[Outcome]) -> None:
        """Keep results, durably; none after `close`."""
        with self._lock:
            if self._closed:
                return
            self._output.append(outcome for outcome in outcomes if outcome.ok)
            self._errors.append(outcome for outcome in outcomes if not outcome.ok)
            for outcome in outcomes:
                self._done[outcome.line.number] = 1
                self.counts.add(status=outcome.status, body=outcome.body)

    def fail_rest(self, lines: Iterable[Line], code: str, message: str, *, wanted: Callable[[], bool]) -> None:
        """Give every request without a result the error that it was not executed."""
        block: list[Outcome] = []
        for line in self.left(lines):
            block.append(Outcome(line, 0, error={"code": code, "message": message}))
            if len(block) == 1_000:
                if not wanted():
                    return
                self.take(block)
                block = []
        self.take(block)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._output.close()
            self._errors.close()

    def _seen(self, record: dict[str, Any]) -> None:
        found = _NUMBER.fullmatch(record["id"])
        if found is None or (number := int(found[1], 16)) >= len(self._done):
            return
        self._done[number] = 1
        response = record["response"]
        if isinstance(response, dict):
            self.counts.add(status=response.get("status_code", 0), body=response.get("body"))
        else:
            self.counts.add(status=0, body=None)
