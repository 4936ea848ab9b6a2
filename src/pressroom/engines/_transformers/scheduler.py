"""The thread that runs the model: reads prompts, takes steps, lets answers in and out between two steps."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import torch

from pressroom.engines._transformers.answer import Answer, Piece
from pressroom.engines._transformers.apart import ApartReading, ApartRows
from pressroom.engines._transformers.picking import pick
from pressroom.engines._transformers.prefixes import Prefixes
from pressroom.engines._transformers.refusal import failed
from pressroom.engines._transformers.rows import Model, Prompt, Reading, Rows

_log = logging.getLogger(__name__)

# Tokens of a prompt that are read between two steps of the others: they wait that long.
_PIECE = 512
# Tokens, with the padding, of prompts that are read at once.
_TOGETHER = 2048
# Answers that may wait for a slot; more are refused.
_MOST_WAITING = 4096
# Why an answer ended that nobody waits for; no client sees it.
_CANCELLED = "cancelled"
Tell = Callable[[list[tuple[Answer, Piece]]], None]


class Scheduler:
    """Answers are submitted, cancelled, paused and resumed from any thread. `tell` is called from the model's thread
    with what is new, once a step, and must not block."""

    def __init__(self, model: Model, rows: Rows | ApartRows, *, slots: int, cache_bytes: int, tell: Tell) -> None:
        self._model = model
        self._rows = rows
        self._slots = slots
        self._tell = tell
        self._prefixes = Prefixes(cache_bytes)
        self._changed = threading.Condition()
        self._arrived: deque[Answer] = deque()
        self._waiting: deque[Answer] = deque()
        self._running: list[Answer] = []
        self._reading: Reading | ApartReading | None = None
        self._read: list[Answer] = []
        self._made = self._prompts = 0
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def counts(self) -> dict[str, int]:
        """For /health: how many answers are being written and how many wait; and the tokens since the start, of prompts
        that were begun (whole, and once for each answer) and of answers, whoever heard of them."""
        return {
            "running": len(self._running) + len(self._read),
            "waiting": len(self._waiting) + len(self._arrived),
            "cached_bytes": self._prefixes.bytes,
            "tokens_read": self._prompts,
            "tokens_made": self._made,
        }

    def submit(self, answers: Sequence[Answer]) -> bool:
        """Let these be written; False where too many wait already."""
        with self._changed:
            if len(self._waiting) + len(self._arrived) + len(answers) > _MOST_WAITING:
                return False
            self._arrived.extend(answers)
            self._changed.notify()
        return True

    def cancel(self, answer: Answer) -> None:
        """Nobody waits for it any more; an empty piece that is finished says when it was let go of."""
        with self._changed:
            answer.cancelled = True
            self._changed.notify()

    def pause(self, answer: Answer) -> None:
        """Its reader is slow: it gives its place to another until `resume`."""
        answer.paused = True

    def resume(self, answer: Answer) -> None:
        """Its reader has caught up."""
        with self._changed:
            answer.paused = False
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._arrived or self._running or self._reading or self._ready()):
                    self._changed.wait()
                self._waiting.extend(self._arrived)
                self._arrived.clear()
            news: list[tuple[Answer, Piece]] = []
            try:
                with torch.inference_mode():
                    self._turn(news)
            except Exception as error:  # noqa: BLE001
                # The edge of this process: what was being worked on fails, the engine lives on.
                _log.exception("a step of the model failed")
                news += self._all_failed(error)
                time.sleep(0.05)
            if news:
                self._tell(news)

    def _ready(self) -> bool:
        return any(not answer.paused or answer.cancelled for answer in self._waiting)

    def _turn(self, news: list[tuple[Answer, Piece]]) -> None:
        self._let_go(news)
        if self._reading is None:
            self._begin_reading()
        if self._reading is not None:
            logits = self._reading.step(_PIECE)
            if logits is not None:
                self._join(logits, news)
        if self._running:
            logits = self._rows.step([answer.tokens[-1] for answer in self._running])
            self._accept(logits, news)

    def _let_go(self, news: list[tuple[Answer, Piece]]) -> None:
        """Answers that nobody reads now leave."""
        for row in reversed(range(len(self._running))):
            answer = self._running[row]
            if answer.cancelled or answer.paused:
                self._leave(row)
                if answer.cancelled:
                    news.append((answer, Piece(finish=_CANCELLED)))
                else:
                    self._waiting.append(answer)
        gone = [answer for answer in self._waiting if answer.cancelled]
        if gone:
            self._waiting = deque(answer for answer in self._waiting if not answer.cancelled)
        if self._reading is not None and all(answer.cancelled for answer in self._read):
            gone += self._read
            self._reading, self._read = None, []
        news += [(answer, Piece(finish=_CANCELLED)) for answer in gone]

    def _leave(self, row: int, *, broken: bool = False) -> None:
        answer = self._running[row]
        if answer.asked.cache and not broken:
            # The last token has been picked and not been read.
            known = answer.tokens[: self._rows.lengths[row]]
            if self._prefixes.most and not self._prefixes.holds(known):
                self._prefixes.add(known, self._rows.kept(row))
        self._rows.leave(row, wipe=broken)
        last = self._running.pop()
        if row < len(self._running):
            self._running[row] = last

    def _begin_reading(self) -> None:
        free = self._slots - len(self._running)
        group: list[tuple[Answer, Prompt]] = []
        passed: list[Answer] = []
        widest = 0
        seen: set[tuple[int, ...]] = set()
        while self._waiting and len(group) < free:
            answer = self._waiting.popleft()
            if answer.paused:
                passed.append(answer)
                continue
            caching = answer.asked.cache and self._prefixes.most > 0
            same = tuple(answer.tokens) if caching and answer.asked.n > 1 else ()
            if same and same in seen:
                # Read once: the next turn finds it in the cache.
                passed.append(answer)
                continue
            known, kept = self._prefixes.find(answer.tokens) if caching else (0, None)
            prompt = Prompt(answer.tokens, kept, known)
            wider = max(widest, prompt.new)
            alone = prompt.new > _PIECE or (self._model.sliding and known)
            if group and (alone or (len(group) + 1) * wider > _TOGETHER or not self._model.batches):
                self._waiting.appendleft(answer)
                break
            seen.add(same)
            group.append((answer, prompt))
            widest = wider
            if alone:
                break
        self._waiting.extendleft(reversed(passed))
        if not group:
            return
        for answer, prompt in group:
            if answer.cached_tokens is None:
                answer.cached_tokens = prompt.known_tokens
                self._prompts += answer.prompt_tokens
        self._read = [answer for answer, _ in group]
        self._reading = self._rows.read([prompt for _, prompt in group])

    def _join(self, logits: torch.Tensor, news: list[tuple[Answer, Piece]]) -> None:
        reading, answers = self._reading, self._read
        assert reading is not None
        self._reading, self._read = None, []
        picks = pick(logits, [answer.picker for answer in answers])
        for row, (answer, picked) in enumerate(zip(answers, picks, strict=True)):
            if answer.cancelled:
                news.append((answer, Piece(finish=_CANCELLED)))
                continue
            kept = reading.kept(row)
            if answer.asked.cache and picked is not None and self._prefixes.most:
                self._prefixes.add(answer.tokens, kept)
            piece = answer.accept(picked)
            self._made += picked is not None
            if piece:
                news.append((answer, piece))
            if not (piece.finish or piece.error):
                self._rows.join(kept)
                self._running.append(answer)

    def _accept(self, logits: torch.Tensor, news: list[tuple[Answer, Piece]]) -> None:
        picks = pick(logits, [answer.picker for answer in self._running])
        done: list[tuple[int, bool]] = []
        for row, (answer, picked) in enumerate(zip(self._running, picks, strict=True)):
            piece = answer.accept(picked)
            self._made += picked is not None
            if piece:
                news.append((answer, piece))
            if piece.finish or piece.error:
                done.append((row, picked is None))
        for row, broken in reversed(done):
            self._leave(row, broken=broken)

    def _all_failed(self, error: Exception) -> list[tuple[Answer, Piece]]:
        problem = failed(f"the model failed: {type(error).__name__}: {str(error)[:300]}")
        lost = [*self._running, *self._read]
        self._running, self._read, self._reading = [], [], None
        self._rows.clear()
        self._prefixes.clear()
        return [(answer, Piece(error=problem)) for answer in lost]
