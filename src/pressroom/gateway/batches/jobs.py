"""From a file of requests to a file of results, through a gateway that runs: what `press batch` does.

The output says what is done: run again, only the lines without a result are sent. A line is known by its id, and by a
digest of its request, so that an answer to something else is not taken for its own.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from pressroom.gateway.batches._checking import numbered_lines
from pressroom.gateway.batches._client import Client, longest_silence_s
from pressroom.gateway.batches._disk import writing
from pressroom.gateway.batches._matching import Index, State, key_of
from pressroom.gateway.batches._outfile import OutFile
from pressroom.gateway.batches._plain import Asking
from pressroom.gateway.batches._sending import Sending
from pressroom.gateway.batches.base import BatchError, Counts, Line, Outcome
from pressroom.kernel import Progress, Workspace

# How long nothing at all may be answered before the run is given up; what is done is kept.
_PATIENCE_S = 600.0
# Inputs that take seconds to look at say so.
_TOLD_LINES = 20_000
_REASONS = 50
_REASON_LENGTH = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How a file is run: by which deployment of the gateway at `url`, with which `key`, and as `Asking` has it.
    `concurrency` None takes that of the settings."""

    url: str
    deployment: str
    key: str = field(default="", repr=False)
    endpoint: str | None = None
    system: str | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    concurrency: int | None = None
    patience_s: float = _PATIENCE_S
    retry_failed: bool = False
    redo_changed: bool = False


@dataclass(kw_only=True, slots=True)
class Summary:
    """What a run came to. `counts` are of this run; `failed` are all lines whose result is none, of earlier runs, too;
    `left` have no result yet. `reasons`: why, and how often, the most frequent first."""

    out: Path
    total: int = 0
    before: int = 0
    counts: Counts = field(default_factory=Counts)
    failed: int = 0
    left: int = 0
    seconds: float = 0.0
    reasons: list[tuple[str, int]] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over the time of this run."""
        return self.counts.output_tokens / self.seconds if self.seconds else 0.0


class FileJob:
    """One run of a file. `began` is called when the first request is about to be sent; from then on `stopped` ends
    the run in order: what runs is finished and kept."""

    def __init__(
        self,
        source: Path | IO[bytes],
        out: Path,
        options: Options,
        workspace: Workspace,
        *,
        stopped: Callable[[], bool] = lambda: False,
        began: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = source
        self._out = out
        self._options = options
        self._settings = workspace.settings
        self._events = workspace.events
        self._scratch = workspace.path("tmp")
        self._stopped = stopped
        self._began = began
        self._asking = Asking(
            deployment=options.deployment,
            endpoint=options.endpoint,
            system=options.system,
            defaults=options.defaults,
        )
        self._reasons: Counter[str] = Counter()

    def run(self) -> Summary:
        """Send what has no result yet.

        Raises:
            BatchError: a line cannot be read, two have one id, lines have changed, or nothing was answered for long.
            LockedError: another process writes the output.
            StoreError: the disk refuses; what was written before is good.
        """
        with ExitStack() as held:
            path = self._regular(held)
            asked = self._read(path)
            output = OutFile(self._out)
            held.callback(output.close)
            states = self._matched(output, asked)
            summary = Summary(out=self._out, total=len(asked))
            summary.before = len(states) - states.count(State.TODO)
            if summary.before < summary.total:
                self._send(path, asked, states, output, summary)
            summary.failed = states.count(State.FAILED)
            summary.left = states.count(State.TODO)
            summary.reasons = self._reasons.most_common(_REASONS)
            return summary

    def _regular(self, held: ExitStack) -> Path:
        """The input as a file that can be read twice."""
        if isinstance(self._source, Path) and self._source.is_file():
            return self._source
        spool = held.enter_context(tempfile.NamedTemporaryFile(dir=self._scratch, prefix="batch-"))  # noqa: SIM115
        with writing(Path(spool.name)):
            if isinstance(self._source, Path):
                with self._source.open("rb") as source:
                    shutil.copyfileobj(source, spool)
            else:
                shutil.copyfileobj(self._source, spool)
            spool.flush()
        return Path(spool.name)

    def _lines(self, path: Path) -> Iterator[Line]:
        limit = self._settings.gateway.max_body_bytes
        with path.open("rb") as file:
            for number, (row, text) in enumerate(numbered_lines(file, limit=limit)):
                if text is None:
                    raise BatchError(
                        f"line {row} is over {limit} bytes",
                        hint="The setting gateway.max_body_bytes is the limit.",
                        line=row,
                    )
                yield self._asking.line(text, number=number, row=row)

    def _read(self, path: Path) -> Index:
        """Look at every line, before one is sent."""
        asked = Index()
        task, size, read = f"reading {self._name}", path.stat().st_size, 0
        for line in self._lines(path):
            asked.add_line(line)
            read += len(line.body)
            if not len(asked) % _TOLD_LINES:
                # A line is not as long as its request, but nearly: this is for the eye.
                self._events.emit(Progress(task=task, done=min(read, size - 1), total=size))
        if len(asked) >= _TOLD_LINES:
            self._events.emit(Progress(task=task, done=size, total=size))
        if not len(asked):
            raise BatchError("there is no request in the input", hint="Write one request a line.")
        repeated = asked.repeated()
        if repeated is not None:
            places = {line.number: line for line in self._lines(path) if line.number in repeated}
            first, second = (places[place] for place in repeated)
            raise BatchError(
                f"requests {first.number + 1} and {second.number + 1} of the input have the same id, "
                f"{second.custom_id!r}",
                hint="An id names one request; give each its own, or none.",
                id=second.custom_id,
            )
        return asked

    def _matched(self, output: OutFile, asked: Index) -> bytearray:
        """What the output says of each line, with what is to be done again taken out of it."""
        results = Index()
        output.recover(results.add_result)
        states = asked.states(results)
        again = {State.FAILED} if self._options.retry_failed else set()
        changed = states.count(State.CHANGED)
        if changed and not self._options.redo_changed:
            first = states.index(State.CHANGED) + 1
            raise BatchError(
                f"{changed:,} of the requests in {self._out} are not those of the input any more, the first of them "
                f"request {first}: its line, or an option of this command, was another when it was answered",
                hint="--redo-changed answers them again in place of what is there; --out NAME begins a new file.",
                changed=changed,
                out=str(self._out),
            )
        if changed:
            again.add(State.CHANGED)
        if any(states.count(state) for state in again):
            keys = asked.keys_where(states, again)
            output.without(lambda result: _among(keys, str(result.get("custom_id"))))
            output.recover(lambda _: None)
            for state in again:
                states = states.replace(bytes([state]), bytes([State.TODO]))
        return states

    def _send(self, path: Path, asked: Index, states: bytearray, output: OutFile, summary: Summary) -> None:
        def left() -> Iterator[Line]:
            for line in self._lines(path):
                if line.number >= len(states) or not asked.has(line.number, line):
                    raise BatchError(
                        "the input was changed while it was read", hint="Run it again; what was answered is kept."
                    )
                if states[line.number] == State.TODO:
                    yield line

        def take(outcomes: list[Outcome]) -> None:
            output.append(outcomes)
            for outcome in outcomes:
                states[outcome.line.number] = State.DONE if outcome.ok else State.FAILED
                summary.counts.add(status=outcome.status, body=outcome.body)
                if not outcome.ok:
                    self._reason(outcome)
            self._tell(summary)

        self._began()
        self._tell(summary)
        started = time.monotonic()
        try:
            asyncio.run(self._sent(left(), take))
        finally:
            summary.seconds = time.monotonic() - started

    async def _sent(self, lines: Iterator[Line], take: Callable[[list[Outcome]], None]) -> None:
        options = self._options
        client = Client(options.url, silence_s=longest_silence_s(self._settings.gateway), key=options.key)
        sending = Sending(
            client,
            concurrency=options.concurrency or self._settings.batch.concurrency,
            stopped=self._stopped,
            patience_s=options.patience_s,
            needs_in=True,
        )
        try:
            await sending.run(lines, take)
        finally:
            client.close()

    def _tell(self, summary: Summary) -> None:
        done = summary.before + summary.counts.done
        self._events.emit(Progress(task=self._name, done=done, total=summary.total, unit="requests"))

    @property
    def _name(self) -> str:
        return self._source.name if isinstance(self._source, Path) else "standard input"

    def _reason(self, outcome: Outcome) -> None:
        error = outcome.error
        if error is None and isinstance(outcome.body, dict) and isinstance(outcome.body.get("error"), dict):
            error = outcome.body["error"]
        message = str((error or {}).get("message") or f"status {outcome.status}")[:_REASON_LENGTH]
        if message in self._reasons or len(self._reasons) < _REASONS:
            self._reasons[message] += 1


def _among(keys: Any, custom_id: str) -> bool:
    key = np.uint64(key_of(custom_id))
    place = int(np.searchsorted(keys, key))
    return place < len(keys) and bool(keys[place] == key)
