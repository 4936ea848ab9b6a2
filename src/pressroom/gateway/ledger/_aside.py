"""What of a request is held in memory for a moment and never goes through the journal: its text, and its language.

The event loop puts in, the thread that folds takes out. All is bounded: what does not fit is left out and counted.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

from pressroom.gateway.ledger._texts import KEPT, READ, answer_of, clean, excerpt_of, text_of

_log = logging.getLogger(__name__)

UNDETERMINED = "und"
# Requests that are held at once, and bytes of their texts.
_MOST = 16_384
_MOST_BYTES = 64 << 20
_REMEMBERED = 8_192
# Of one core, what finding languages may take; and the seconds of it that may be saved up.
_SHARE = 0.1
_SAVED_S = 1.0
_REST_S = 0.001
_ANSWER_BYTES = 1 << 20


class Known(NamedTuple):
    """What was found of one request."""

    language: str
    prompt_text: str | None
    answer_text: str | None
    held: int


class Aside:
    """`put` on the event loop; `work` and `take` on the thread that folds."""

    def __init__(
        self,
        *,
        content: str,
        language: bool,
        language_of: Callable[[str], str] | None = None,
        redacted: Callable[[str], str] | None = None,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """`content` is none, redacted or full. The functions are those of `pressroom.text` unless given."""
        self.keeps_text = content != "none"
        #: Whether there is anything to put.
        self.on = language or self.keeps_text
        self._language = language
        self._redacts = content == "redacted"
        self._language_of = language_of
        self._redacted = redacted
        self._clock = clock
        self._fresh: deque[tuple[str, str, str, bytes]] = deque()
        self._known: dict[str, Known] = {}
        # Each side counts its own: bytes put in and bytes let go.
        self._came = 0
        self._went = 0
        self._languages: OrderedDict[int, str] = OrderedDict()
        self._allowance = _SAVED_S
        self._last = time.monotonic()
        #: Requests whose language was not looked for, to spare the processor, and those that nothing was held of.
        self.hurried = 0
        self.left_out = 0

    def put(self, id: str, prompt: Any, answer: bytes) -> None:
        """Hold what is wanted of a request."""
        if len(self._fresh) + len(self._known) >= _MOST:
            self.left_out += 1
            return
        excerpt = excerpt_of(prompt) if self._language else ""
        if not self.keeps_text:
            if excerpt:
                self._fresh.append((id, excerpt, "", b""))
            return
        text = text_of(prompt, READ + 1)
        held = len(text) + len(answer)
        if self._came - self._went + held > _MOST_BYTES:
            self.left_out += 1
            return
        self._came += held
        self._fresh.append((id, excerpt, text, answer))

    def work(self) -> None:
        """Find the languages of what came, and make the texts that are kept."""
        now = time.monotonic()
        self._allowance = min(_SAVED_S, self._allowance + (now - self._last) * _SHARE)
        self._last = now
        while self._fresh:
            id, excerpt, text, answer = self._fresh.popleft()
            language = self._found(excerpt) if excerpt else ""
            held = len(text) + len(answer)
            prompt_text = answer_text = None
            if self.keeps_text:
                prompt_text = self._kept(text)
                answer_text = (
                    self._kept(answer_of(answer, READ + 1)) if len(answer) <= _ANSWER_BYTES else _mark(len(answer))
                )
                kept = len(prompt_text or "") + len(answer_text or "")
                self._went += held - kept
                held = kept
            self._known[id] = Known(language, prompt_text, answer_text, held)

    def take(self, id: str) -> Known | None:
        """What was found of this request; it stays until `forget`, because a database may be away."""
        return self._known.get(id)

    def forget(self, id: str) -> None:
        known = self._known.pop(id, None)
        if known is not None and self.keeps_text:
            self._went += known.held

    def _found(self, excerpt: str) -> str:
        key = hash(excerpt)
        found = self._languages.get(key)
        if found is not None:
            self._languages.move_to_end(key)
            return found
        if self._allowance <= 0:
            self.hurried += 1
            return UNDETERMINED
        began = self._clock()
        try:
            if self._language_of is None:
                from pressroom.text import language_of

                self._language_of = language_of
            found = self._language_of(excerpt)
        except Exception:  # a text that nobody thought of must not hold up the rows  # noqa: BLE001
            _log.exception("the language of a request cannot be found")
            found = UNDETERMINED
        self._allowance -= self._clock() - began
        time.sleep(_REST_S)  # the event loop waited for that
        self._languages[key] = found
        if len(self._languages) > _REMEMBERED:
            self._languages.popitem(last=False)
        return found

    def _kept(self, text: str) -> str | None:
        if not text:
            return None
        # Cut in the middle, a name or a number might not be known for what it is: such a text is not kept at all.
        if len(text) > READ:
            return _mark(len(text))
        if self._redacts:
            try:
                if self._redacted is None:
                    from pressroom.text import redacted

                    self._redacted = redacted
                text = self._redacted(text)
            except Exception:  # nothing is kept that was not looked through  # noqa: BLE001
                _log.exception("a text cannot be redacted")
                return None
        return clean(text[:KEPT])


def _mark(length: int) -> str:
    return f"[TEXT OF {'MORE THAN ' if length > READ else ''}{min(length, READ):,} CHARACTERS NOT KEPT]"
