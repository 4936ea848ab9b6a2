"""One batch of the server, from where it is to its end. Whatever is cut in between is done again or gone on with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pressroom.gateway.batches._batches import Batches
from pressroom.gateway.batches._checking import Checked, Interrupted, check, lines_of
from pressroom.gateway.batches._client import Client
from pressroom.gateway.batches._files import FileStore
from pressroom.gateway.batches._ledger import Ledger
from pressroom.gateway.batches._sending import Sending
from pressroom.gateway.batches.base import BatchRecord, FileRecord, Line, Outcome, Status

# How often the counts of a batch that runs are written down.
_TELL_S = 1.0
_EXPIRED = "This request could not be executed before the completion window expired."
_GONE = {"code": "file_not_found", "message": "The input file is gone.", "param": None, "line": None}
_FINAL = {
    Status.COMPLETED: "completed_at",
    Status.EXPIRED: "expired_at",
    Status.CANCELLED: "cancelled_at",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Means:
    """What carrying a batch needs."""

    files: FileStore
    batches: Batches
    client: Client
    concurrency: int
    #: What all batches together may send at once.
    room: asyncio.Semaphore
    line_limit: int
    clock: Callable[[], float]


class Carrying:
    """`cancel` and `leave` may be called from any thread; `leave` is the end of the server and not of the batch."""

    def __init__(self, means: Means, batch: BatchRecord) -> None:
        self._means = means
        self._batch = batch
        self._cancelled = batch.status is Status.CANCELLING
        self._left = False
        self._told = 0.0

    @property
    def owner(self) -> str:
        return self._batch.owner

    def cancel(self) -> None:
        self._cancelled = True

    def leave(self) -> None:
        self._left = True

    async def run(self) -> None:
        """Carry it to its end, or to where `leave` found it.

        Raises:
            PressroomError: the disk or the database refuses; the batch is as it was, and may be tried again.
        """
        # What the runner read may be a moment old, and the batch over since.
        self._batch = self._means.batches.current(self._batch.id)
        if self._batch.status.over:
            return
        if self._batch.status is Status.VALIDATING and not await self._validate():
            return
        try:
            await self._carry()
        except FileNotFoundError:  # of the input: those of the results are made
            self._fail([_GONE])

    async def _carry(self) -> None:
        ledger = await asyncio.to_thread(self._open)
        try:
            if not self._stopped() and not self._expired():
                sending = Sending(
                    self._means.client,
                    concurrency=self._means.concurrency,
                    behalf=self._batch.key_name,
                    room=self._means.room,
                    stopped=lambda: self._stopped() or self._expired(),
                )
                await sending.run(ledger.left(self._lines()), lambda outcomes: self._take(ledger, outcomes))
            if not self._left:
                await asyncio.to_thread(self._finish, ledger)
        finally:
            ledger.close()

    async def _validate(self) -> bool:
        """Look at the input; whether there is something to send, or results to close."""
        means, batch = self._means, self._batch
        try:
            found = await asyncio.to_thread(
                check,
                means.files.path(batch.input_file),
                batch.endpoint,
                line_limit=means.line_limit,
                wanted=lambda: not self._stopped(),
            )
        except FileNotFoundError:
            found = Checked(problems=[_GONE])
        except Interrupted:
            return self._cancelled and not self._left
        if found.problems:
            if self._fail(found.problems):
                return False
        elif means.batches.move(
            batch.id,
            [Status.VALIDATING],
            status=Status.IN_PROGRESS,
            total=found.total,
            model=found.model,
            in_progress_at=means.clock(),
        ):
            self._batch = means.batches.current(batch.id)
            return True
        self._cancelled = True  # somebody cancelled it meanwhile, and nothing else takes a batch out of this state
        return True

    def _fail(self, problems: list[dict[str, Any]]) -> bool:
        means = self._means
        states = [Status.VALIDATING, Status.IN_PROGRESS]
        changes = {"status": Status.FAILED, "problems": problems, "failed_at": means.clock()}
        return means.batches.move(self._batch.id, states, **changes)

    def _open(self) -> Ledger:
        files, batch = self._means.files, self._batch
        return Ledger(files.path(batch.output), files.path(batch.errors), total=batch.total)

    def _lines(self) -> Iterator[Line]:
        return lines_of(
            self._means.files.path(self._batch.input_file),
            prefix=self._batch.id.removeprefix("batch_"),
        )

    def _take(self, ledger: Ledger, outcomes: list[Outcome]) -> None:
        ledger.take(outcomes)
        now = time.monotonic()
        if now - self._told >= _TELL_S:
            self._told = now
            self._means.batches.move(self._batch.id, [Status.IN_PROGRESS, Status.CANCELLING], counts=ledger.counts)

    def _finish(self, ledger: Ledger) -> None:
        means, batch = self._means, self._batch
        if not self._cancelled and ledger.counts.done < batch.total:
            status = Status.EXPIRED
            ledger.fail_rest(self._lines(), "batch_expired", _EXPIRED, wanted=lambda: not self._left)
            if self._left:
                return
        else:
            status = Status.CANCELLED if self._cancelled else Status.COMPLETED
        now = means.clock()
        if status is not Status.CANCELLED:
            means.batches.move(batch.id, [Status.IN_PROGRESS], status=Status.FINALIZING, finalizing_at=now)
        output, errors = (self._result(kind) for kind in ("output", "error"))
        means.batches.finish(
            batch.id,
            [file for file in (output, errors) if file is not None],
            status=status,
            counts=ledger.counts,
            has_output=output is not None,
            has_errors=errors is not None,
            **{_FINAL[status]: means.clock()},
        )

    def _result(self, kind: str) -> FileRecord | None:
        batch = self._batch
        return self._means.files.measured(
            batch.output if kind == "output" else batch.errors,
            "batch_output",
            f"{batch.id}_{kind}.jsonl",
            expires_s=batch.results_expire_s,
            owner=batch.owner,
        )

    def _stopped(self) -> bool:
        return self._left or self._cancelled

    def _expired(self) -> bool:
        return self._means.clock() >= self._batch.expires
