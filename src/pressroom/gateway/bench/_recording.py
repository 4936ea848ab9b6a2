"""The requests of one round, and the figures made of them."""

from __future__ import annotations

import itertools
import random
from array import array

from pressroom.gateway.bench._asks import Ask
from pressroom.gateway.bench.base import Round, Slo, Spread

_NEVER = float("inf")
# Values of one kind that are kept; of more, a fair sample, so that an hour of load takes no more memory than a minute.
_KEPT = 1_000_000


class Sample:
    """Values, all of them up to a number, and above it a fair choice of that many."""

    def __init__(self, most: int = _KEPT) -> None:
        self.values = array("d")
        self._most = most
        self._seen = 0
        self._random = random.Random(0)  # noqa: S311  nothing secret

    def add(self, value: float) -> None:
        self._seen += 1
        if len(self.values) < self._most:
            self.values.append(value)
        elif (place := self._random.randrange(self._seen)) < self._most:
            self.values[place] = value


class Recording:
    """What the requests of a round were given: `add` each when it has ended, `close` when the round is over, also the
    requests that end after it, then `figures`."""

    def __init__(self, began: float, slo: Slo | None) -> None:
        self.e2e, self.ttft, self.tpot, self.itl = Sample(), Sample(), Sample(), Sample()
        self.errors: dict[str, tuple[int, str]] = {}
        #: How many requests have ended, well or not.
        self.ended = 0
        self._began = self._last = began
        self._until = _NEVER
        self._slo = slo
        # Of all requests that ended well, and of what came within the round.
        self._done = self._prompt = self._output = self._cached = self._pieces = 0
        self._in_done = self._in_prompt = self._in_output = self._in_pieces = self._in_kept = 0

    def close(self, at: float) -> None:
        """The round is over: what comes from now on counts for the latencies only."""
        self._until = at

    def add(self, ask: Ask) -> None:
        """Take in a request that has just ended."""
        self.ended += 1
        if ask.error is not None:
            kind, text = ask.error
            number, first = self.errors.get(kind, (0, text))
            self.errors[kind] = (number + 1, first)
            return
        times, e2e = ask.times, ask.ended - ask.began
        output = ask.output or len(times)
        ttft = tpot = None
        self.e2e.add(e2e)
        if times:
            ttft = times[0] - ask.began
            self.ttft.add(ttft)
            if output > 1:
                tpot = (times[-1] - times[0]) / (output - 1)
                self.tpot.add(tpot)
            for before, after in itertools.pairwise(times):
                self.itl.add(after - before)
        self._done += 1
        self._prompt += ask.prompt
        self._output += output
        self._cached += ask.cached
        self._pieces += len(times)
        self._last = max(self._last, ask.ended)
        self._take_pieces(times)
        if ask.ended <= self._until:
            self._in_done += 1
            self._in_prompt += ask.prompt
            self._in_output += output
            self._in_kept += self._kept(ttft, tpot, e2e)

    def add_unfinished(self, ask: Ask) -> None:
        """Take in a request that was given up: its pieces came, and nothing else is known of it."""
        self._take_pieces(ask.times)

    def _take_pieces(self, times: list[float]) -> None:
        ended_before = self._until == _NEVER
        self._in_pieces += len(times) if ended_before else sum(1 for at in times if at <= self._until)

    def _kept(self, ttft: float | None, tpot: float | None, e2e: float) -> bool:
        slo = self._slo
        if slo is None:
            return True
        pairs = ((slo.ttft, ttft), (slo.tpot, tpot), (slo.e2e, e2e))
        return all(bound is None or value is None or value * 1000 <= bound for bound, value in pairs)

    def figures(self, *, clients: int, busy: float, unfinished: int, interrupted: bool) -> Round:
        """The round as it was."""
        seconds = max((self._last if self._until == _NEVER else self._until) - self._began, 1e-9)
        output = float(self._in_output)
        if self._in_pieces:
            # Requests that ended after the round wrote a part of their tokens within it: pieces say when, usage how
            # many tokens a piece is.
            output = self._in_pieces * (self._output / self._pieces if self._pieces else 1.0)
        done = max(self._done, 1)
        return Round(
            clients=clients,
            seconds=seconds,
            requests=self._done,
            requests_per_s=self._in_done / seconds,
            output_tokens_per_s=output / seconds,
            total_tokens_per_s=(output + self._in_prompt) / seconds,
            prompt_tokens=self._prompt / done,
            cached_tokens=self._cached / done,
            output_tokens=self._output / done,
            ttft_ms=Spread.of(self.ttft.values, scale=1000),
            itl_ms=Spread.of(self.itl.values, scale=1000),
            tpot_ms=Spread.of(self.tpot.values, scale=1000),
            e2e_ms=Spread.of(self.e2e.values, scale=1000),
            goodput_per_s=None if self._slo is None else self._in_kept / seconds,
            errors=dict(self.errors),
            unfinished=unfinished,
            generator_cpu=busy,
            interrupted=interrupted,
        )
