"""Load with a fixed number of clients: each asks again as soon as it was answered.

All on one event loop, in callbacks: a request costs no task and no future, so that the gateway is busy before this is.
The share of a core that it used stands in every result.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit

from pressroom.gateway.bench._asks import Ask
from pressroom.gateway.bench._load import run_round
from pressroom.gateway.bench._prompts import Prompts
from pressroom.gateway.bench.base import BenchError, BenchSettings, Round
from pressroom.gateway.upstream import Upstream
from pressroom.kernel import rights

# What an engine may take for its first byte, and between two.
_SILENCE_S = 600.0
_PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
# Words of two first prompts, whose token counts say how many tokens a word is.
_PROBES = (50, 150)


class Bench:
    """A benchmark of the deployment `model` behind the gateway at `url`, with a key where there is one; belongs to one
    event loop.

    `told` hears how many requests have ended, of how many in all where that is known, a few times a second.
    """

    def __init__(
        self,
        url: str,
        model: str,
        settings: BenchSettings,
        *,
        key: str = "",
        told: Callable[[int, int, int | None], None] | None = None,
    ) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._settings = settings
        self._told = told
        self._upstream = Upstream(connect_timeout_s=30.0, first_byte_timeout_s=_SILENCE_S)
        self._prompts = Prompts(
            model=model, endpoint=settings.endpoint, seed=settings.seed, same_prefix=settings.same_prefix
        )
        self._head = f"POST {_PATHS[settings.endpoint]} HTTP/1.1\r\nHost: {parts.netloc}\r\n".encode()
        if key:
            self._head += b"Authorization: Bearer %b\r\n" % key.encode("ascii")
        self._head += b"Content-Type: application/json\r\nContent-Length: "
        self._past_end = True
        self._made: dict[int, bytes] = {}
        self._stopped = asyncio.Event()
        self.rounds: list[Round] = []

    def stop(self) -> None:
        """End the round that runs; `run` returns what was measured until now."""
        self._stopped.set()

    async def run(self) -> list[Round]:
        """All rounds, one after the other.

        Raises:
            BenchError: the deployment does not answer a first request.
        """
        try:
            await self._calibrate()
            for clients in self._settings.clients:
                if self._stopped.is_set():
                    break
                self.rounds.append(
                    await run_round(
                        self, clients, self._settings, stopped=self._stopped, told=partial(self._tell, clients)
                    )
                )
        finally:
            self._upstream.close()
        return self.rounds

    def _tell(self, clients: int, done: int) -> None:
        if self._told is not None:
            self._told(clients, done, self._settings.requests)

    def send(self, ended: Callable[[Ask], None], *, tokens: int) -> Ask:
        """Send the next request, for so many tokens."""
        body = self._prompts.body(self._fields(tokens))
        ask = Ask(ended)
        self._upstream.send(self._address, b"%b%d\r\n\r\n" % (self._head, len(body)), body, ask)
        return ask

    def cancel(self, ask: Ask) -> None:
        self._upstream.cancel(ask)

    def _fields(self, tokens: int) -> bytes:
        """The inside of a JSON object."""
        known = self._made.get(tokens)
        if known is not None:
            return known
        fields: dict[str, object] = {"max_tokens": tokens, "temperature": 0}
        if self._past_end:
            fields["ignore_eos"] = True
        if self._settings.stream:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        made = self._made[tokens] = json.dumps(fields)[1:-1].encode()
        return made

    async def _calibrate(self) -> None:
        """Wake the deployment, and find how many words make as many tokens as are wanted."""
        counts = []
        for words in _PROBES:
            self._prompts.words = words
            probe = await self._first()
            if probe is None:
                return
            counts.append(probe.prompt)
        per_word = (counts[1] - counts[0]) / (_PROBES[1] - _PROBES[0])
        wanted = self._settings.prompt_tokens
        around = counts[0] - per_word * _PROBES[0]  # of the chat's template
        self._prompts.words = max(1, round((wanted - around) / per_word)) if per_word > 0 else wanted

    async def _first(self) -> Ask | None:
        """One request that must be answered; None where the benchmark was stopped meanwhile."""
        while True:
            ended = asyncio.Event()
            probe = self.send(lambda ask: ended.set(), tokens=1)  # noqa: B023
            waits = [asyncio.ensure_future(event.wait()) for event in (ended, self._stopped)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            if not ended.is_set():
                self.cancel(probe)
                return None
            if probe.error is None:
                return probe
            kind, text = probe.error
            if self._past_end and kind.startswith("400") and "ignore_eos" in text:
                self._past_end = False  # answers may end early on this engine
                self._made.clear()
                continue
            hint = rights.NEEDS_KEY if kind.startswith("401") else "`press ps` shows what runs."
            raise BenchError(f"the deployment does not answer: {text}", hint=hint, reason=kind)
