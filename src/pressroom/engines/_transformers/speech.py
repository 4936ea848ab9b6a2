"""What of an answer may be sent: whole characters, and nothing that a stop string may still take back."""

from __future__ import annotations

from collections.abc import Sequence

from pressroom.engines._transformers.vocabulary import Decoder


class Speech:
    """The text of one answer as it grows. `stopped` is set once a stop string has come; what follows it is dropped."""

    def __init__(self, decoder: Decoder, stops: Sequence[str] = (), *, include_stop: bool = False) -> None:
        self._decoder = decoder
        self._stops = tuple(stop for stop in stops if stop)
        self._include = include_stop
        self._held = ""
        #: Characters decoded so far, with those that are held.
        self.length = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """What may be sent after this token."""
        return self._add(self._decoder.push(token))

    def rest(self) -> str:
        """What is left when the answer has ended for another reason than a stop string."""
        said = self._add(self._decoder.rest())
        if self.stopped:
            return said
        held, self._held = self._held, ""
        return said + held

    def _add(self, text: str) -> str:
        if self.stopped:
            return ""
        if not self._stops:
            self.length += len(text)
            return text
        self.length += len(text)
        text = self._held + text
        found = min(((at, -len(stop), stop) for stop in self._stops if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            at, _, stop = found
            self.stopped = True
            self._held = ""
            cut = at + (len(stop) if self._include else 0)
            self.length -= len(text) - cut
            return text[:cut]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of the text that a stop string may begin with."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
