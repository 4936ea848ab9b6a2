"""Files from web servers, several connections at once, going on where an earlier run was cut.

Where a server gives ranges and promises by a mark (an ETag) that the file is still the same, the file is fetched in
parts, each by whichever connection is free. An answer that is not exactly the part that was asked for, of the file that
was begun, is thrown away and the file begun anew: bytes of two files are never put together. Any other server is asked
for the whole file in one answer, and again from its beginning when that is cut.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass

from pressroom.kernel import Events, NetworkError, Progress, SourceError
from pressroom.registry.sources._checks import check, mismatch
from pressroom.registry.sources._http import Answer, Cut, Unsatisfied, Web
from pressroom.registry.sources._partial import Partial, Plan, forget
from pressroom.registry.sources._patience import Patience
from pressroom.registry.sources._space import room_for, written
from pressroom.registry.sources._wanted import Brought, File, State, Step, Wanted

_CHUNK = 1 << 20
# The first question, which also asks how large the file is: small files come with it, large ones are then cut in parts.
_FIRST = 1 << 20
# A file that so often turned out to be another is fetched in one answer.
_MOST_CHANGES = 3
_TELL_S = 0.1
_REPEAT_S = 1.0
_GONE = {403, 404, 410}
_NOT_NOW = {401, 403, 404, 410}


@dataclass(frozen=True, slots=True)
class _Work:
    file: File
    step: int | Step
    partial: Partial | None
    changes: int

    @property
    def key(self) -> tuple[int, int | None]:
        return id(self.file), self.step if isinstance(self.step, int) else None


class Downloads:
    """Fetches files. `run` once."""

    def __init__(
        self, wanted: Sequence[Wanted], *, task: str, events: Events, connections: int, agent: str = "pressroom"
    ) -> None:
        self._files = [File(one) for one in wanted]
        self._task = task
        self._events = events
        self._connections = connections
        self._web = Web(agent=agent)
        self._turn = threading.Condition()
        self._patience = Patience()
        self._error: Exception | None = None
        self._stopped = threading.Event()
        self._told: Progress | None = None
        self._told_at = 0.0
        #: Bytes that came over the line in this run.
        self.fetched = 0

    def run(self) -> list[Brought]:
        """Fetch all; returns what is here, in the order it was wanted. Progress is told in the calling thread.

        Raises:
            SourceError: a server refuses, or has not what it should.
            NetworkError: the network is down or a server does not answer; another run goes on with what is here.
            DigestMismatchError: a file is not what was declared.
            StoreFullError, StoreError: it cannot be written.
        """
        for folder in {file.wanted.local.parent for file in self._files}:
            folder.mkdir(parents=True, exist_ok=True)
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(self._connections)]
        try:
            for worker in workers:
                worker.start()
            while not self._over():
                self._tell()
                with self._turn:
                    if not self._over():
                        self._turn.wait(_TELL_S)
        finally:
            with self._turn:
                self._stopped.set()
                self._turn.notify_all()
                for file in self._files:
                    if file.partial is not None:
                        # Whoever still waits for a server writes nothing when it answers.
                        file.partial.close()
        if self._error is not None:
            raise self._error
        self._tell()
        return [
            Brought(wanted=file.wanted, blob=file.blob, mark=file.mark, size=file.size or 0)
            for file in self._files
            if file.state is State.DONE
        ]

    def _over(self) -> bool:
        return self._error is not None or all(file.finished for file in self._files)

    def _tell(self) -> None:
        with self._turn:
            files = [file for file in self._files if file.state is not State.ABSENT]
            sizes = [file.size for file in files if file.size is not None]
            total = sum(sizes) if len(sizes) == len(files) else None
            event = Progress(f"downloading {self._task}", sum(file.done for file in files), total)
            if event.done == total and not self._over():
                event = Progress(f"verifying {self._task}", sum(file.checked for file in files), total)
        # Also while nothing comes: whoever shows a rate should see it fall.
        if event.done and (event != self._told or time.monotonic() - self._told_at >= _REPEAT_S):
            self._told, self._told_at = event, time.monotonic()
            self._events.emit(event)

    def _work(self) -> None:
        while (work := self._next()) is not None:
            try:
                self._do(work)
            except Cut as cut:
                self._cut(work, cut)
            except SourceError as error:
                self._refused(work, error)
            except Exception as error:  # noqa: BLE001  raised again in the thread that waits for all of them
                self._fail(error)
            finally:
                with self._turn:
                    if work.changes == work.file.changes:
                        work.file.busy.discard(work.step)
                    self._turn.notify_all()

    def _next(self) -> _Work | None:
        """What to do next; waits until there is something, None when all is done."""
        with self._turn:
            while not self._stopped.is_set() and not self._over():
                soonest = None
                for file in self._files:
                    for step in file.steps():
                        work = _Work(file, step, file.partial, file.changes)
                        wait = self._patience.wait(work.key)
                        if wait <= 0:
                            file.busy.add(step)
                            return work
                        soonest = wait if soonest is None else min(wait, soonest)
                self._turn.wait(soonest)
            return None

    def _do(self, work: _Work) -> None:
        file, wanted = work.file, work.file.wanted
        if work.step is Step.BEGIN:
            self._begin(file, work)
        elif work.step is Step.WHOLE:
            with closing(self._web.ask(wanted.address)) as answer:
                self._fetch_whole(file, work, answer)
        elif work.step is Step.CHECK:
            file.checked = 0

            def read(count: int) -> None:
                file.checked += count

            if file.partial is not None:
                file.partial.close()
            check(wanted.local, wanted.declared, what=wanted.address.shown, read=read)
            self._move(file, State.DONE)
        else:
            self._fetch_part(file, work)

    def _begin(self, file: File, work: _Work) -> None:
        wanted = file.wanted
        held = self._held(wanted)
        if held is not None:
            self._move(file, State.PARTS, held)
            return
        if wanted.likely:
            with suppress(Unsatisfied), closing(self._web.ask(wanted.address, first=0, last=0)) as answer:
                if self._is_here(file, answer):
                    return
        try:
            answer = self._web.ask(wanted.address, first=0, last=_FIRST - 1)
        except Unsatisfied:  # it is empty, or the server does not know ranges
            self._move(file, State.WHOLE)
            return
        with closing(answer):
            if self._is_here(file, answer):
                return
            total, last = answer.total, answer.last
            is_range = total is not None and last is not None and answer.first == 0 and last < min(_FIRST, total)
            if is_range and answer.mark:
                self._fetch_first(file, work, answer)
                return
            # Without a mark nothing would tell whether the rest is of the same file.
            self._move(file, State.WHOLE)
            if answer.status == 200 or (is_range and last is not None and last + 1 == total):
                self._fetch_whole(file, work, answer)

    def _fetch_first(self, file: File, work: _Work, answer: Answer) -> None:
        """Begin a file with the first of its bytes."""
        assert answer.total is not None
        self._sized(file, answer.total)
        plan = Plan.of(answer.total, answer.mark, connections=self._connections)
        with self._turn:
            if self._stopped.is_set():
                return  # the next run may have begun to work here
            partial = Partial.create(file.wanted.local, plan, what=file.wanted.address.shown)
        self._move(file, State.NEW, partial)
        try:
            self._receive(work, partial, 0, answer)
        finally:
            # Nobody else touches it until the first answer has been read.
            self._move(file, State.PARTS)

    def _held(self, wanted: Wanted) -> Partial | None:
        """What an earlier run left and can be gone on with."""
        found = Partial.resume(wanted.local)
        if found is None:
            return None
        fits = wanted.declared.size in (None, found.plan.size)
        if fits and not wanted.declared.says_which and not found.missing():
            # All is here, and nothing but the server can say whether it is still the same.
            try:
                with closing(self._web.ask(wanted.address, first=0, last=0, mark=found.plan.mark)) as answer:
                    fits = answer.is_part(0, 0, found.plan)
            except Unsatisfied:
                fits = False
            except BaseException:
                found.close()
                raise
        if not fits:
            found.close()
            return None
        return found

    def _is_here(self, file: File, answer: Answer) -> bool:
        """Whether what the server has is here already."""
        size = answer.length if answer.status == 200 else answer.total
        file.blob = file.wanted.seen(answer.mark, size) if size is not None else None
        if file.blob is None:
            return False
        with self._turn:
            file.mark, file.size = answer.mark, size
            file.came = file.checked = size or 0
            file.state = State.DONE
        return True

    def _fetch_part(self, file: File, work: _Work) -> None:
        partial, part = work.partial, work.step
        assert partial is not None and isinstance(part, int)
        plan = partial.plan
        first, last = plan.begin(part) + partial.count(part), plan.begin(part) + plan.length(part) - 1
        try:
            answer = self._web.ask(file.wanted.address, first=first, last=last, mark=plan.mark)
        except Unsatisfied:
            self._begin_anew(file, partial)
            return
        with closing(answer):
            if answer.is_part(first, last, plan):
                self._receive(work, partial, part, answer)
            else:
                self._begin_anew(file, partial)

    def _receive(self, work: _Work, partial: Partial, part: int, answer: Answer) -> None:
        """Put what an answer brings into its part."""
        assert answer.first is not None and answer.last is not None
        left = answer.last + 1 - answer.first
        while left:
            chunk = answer.read(min(_CHUNK, left))
            if not chunk:
                raise Cut(f"was cut, {left:,} bytes before the end of a part")
            if not partial.add(part, chunk):
                return  # begun anew, or stopped
            left -= len(chunk)
            self._news(work, len(chunk))

    def _fetch_whole(self, file: File, work: _Work, answer: Answer) -> None:
        """Take in a file in one answer, from its beginning."""
        wanted, total = file.wanted, answer.length if answer.total is None else answer.total
        if total is not None:
            self._sized(file, total)
            room_for(wanted.local.parent, total, what=wanted.address.shown)
        with self._turn:
            if self._stopped.is_set():
                return
            forget(wanted.local)
            wanted.local.touch()
        most = wanted.most if wanted.declared.size is None else wanted.declared.size
        file.came = 0
        with written(wanted.local, "r+b") as out:
            while chunk := answer.read(_CHUNK):
                if self._stopped.is_set():
                    return
                out.write(chunk)
                file.came += len(chunk)
                if most is not None and file.came > most:
                    self._sized(file, file.came)
                self._news(work, len(chunk), new=file.came > file.farthest)
                # New is what no answer had: a server that cuts each of them would be asked for ever.
                file.farthest = max(file.farthest, file.came)
        if total is not None and file.came != total:
            raise Cut(f"was cut after {file.came:,} of {total:,} bytes")
        with self._turn:
            file.size, file.mark = file.came, answer.mark
            file.state = State.HERE

    def _sized(self, file: File, size: int) -> None:
        """The server says how long the file is, or sends as much."""
        wanted = file.wanted
        if wanted.declared.size not in (None, size):
            raise mismatch(wanted.address.shown, f"has {size} bytes", f"{wanted.declared.size} are declared")
        if wanted.most is not None and size > wanted.most:
            raise SourceError(
                f"{wanted.address.shown} is longer than {wanted.most} bytes", hint="It is not what it is called."
            )
        with self._turn:
            file.size = size

    def _move(self, file: File, state: State, partial: Partial | None = None) -> None:
        with self._turn:
            file.state = state
            if partial is not None:
                file.partial = partial
                file.size, file.mark = partial.plan.size, partial.plan.mark
                if self._stopped.is_set():
                    partial.close()

    def _begin_anew(self, file: File, partial: Partial) -> None:
        """What is here is of another file than the server has now."""
        with self._turn:
            if file.partial is not partial:
                return  # somebody else has seen it, too
            partial.close()
            forget(file.wanted.local)
            file.partial, file.size, file.mark = None, file.wanted.declared.size, ""
            file.busy.clear()
            file.changes += 1
            file.state = State.NEW if file.changes < _MOST_CHANGES else State.WHOLE

    def _news(self, work: _Work, count: int, *, new: bool = True) -> None:
        with self._turn:
            self.fetched += count
            if new:
                self._patience.news(work.key)

    def _cut(self, work: _Work, cut: Cut) -> None:
        with self._turn:
            alone = all(file.busy <= ({work.step} if file is work.file else set()) for file in self._files)
            give_up = self._patience.failed(work.key, wait_s=cut.wait_s, alone=alone)
        if give_up:
            error = NetworkError(
                f"{work.file.wanted.address.shown} {cut}",
                hint="Check the network and run the same command again: it goes on where it was.",
            )
            error.__cause__ = cut
            self._fail(error)

    def _refused(self, work: _Work, error: SourceError) -> None:
        status = error.facts.get("status")
        if work.file.wanted.optional and status in _GONE:
            self._move(work.file, State.ABSENT)
        elif status in _NOT_NOW and work.file.done:
            # A signature or a token that ran out half-way: what is here is still good.
            again = NetworkError(error.message, hint="What came is kept; get access again, and pull again.")
            again.__cause__ = error
            self._fail(again)
        else:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        with self._turn:
            self._error = self._error or error
