"""What is peculiar to a worker: limits of which it has a part, and requests that wait for the owner."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pressroom.gateway.admission import Limits, Refused
from pressroom.gateway.money._rates import Limiter
from pressroom.gateway.money._refusals import owner_gone
from pressroom.gateway.money.base import Hold, Pending

if TYPE_CHECKING:
    from pressroom.gateway.admission import Caller
    from pressroom.gateway.money._books import Held
    from pressroom.gateway.money.worker import Worker

#: In place of a refusal: what is granted is not enough, and the owner has to be asked.
SHORT = owner_gone()


class LeasedLimiter(Limiter):
    """The limits of one key, and what of them this worker has. `granted` are the places to run at once."""

    __slots__ = ("granted", "limits", "requests_left", "tokens_left")

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.limits = Limits()
        self.granted = self.requests_left = self.tokens_left = 0

    def set(self, limits: Limits, now: int) -> None:
        self.limits = limits

    def take(self, tokens: int, now: int) -> Refused | None:
        limits = self.limits
        if limits.parallel is not None and self.running >= self.granted:
            return SHORT
        if limits.requests_per_minute is not None and self.requests_left < 1:
            return SHORT
        if self.take_tokens(tokens, now) is not None:
            return SHORT
        if limits.requests_per_minute is not None:
            self.requests_left -= 1
        self.running += 1
        return None

    def take_tokens(self, tokens: int, now: int) -> Refused | None:
        if self.limits.tokens_per_minute is not None:
            if self.tokens_left < tokens:
                return SHORT
            self.tokens_left -= tokens
        return None

    def untake(self, tokens: int) -> None:
        self.give(tokens)
        if self.limits.requests_per_minute is not None:
            self.requests_left += 1

    def give(self, tokens: int) -> None:
        self.running -= 1
        limit = self.limits.tokens_per_minute
        if limit is not None:
            self.tokens_left = min(self.tokens_left + tokens, limit)


class Asked(Pending):
    """A request that waits for the owner: a new one, or with `hold` one that is to hold more."""

    __slots__ = (
        "at",
        "caller",
        "deadline",
        "hold",
        "model",
        "nano_usd",
        "number",
        "request_id",
        "then",
        "tokens",
        "worker",
    )

    def __init__(
        self, worker: Worker, caller: Caller | None, model: str, tokens: int, nano_usd: int, request_id: str, at: float
    ) -> None:
        self.worker = worker
        self.caller = caller
        self.model = model
        self.tokens = tokens
        self.nano_usd = nano_usd
        self.request_id = request_id
        self.at = at
        self.hold: Held | None = None
        self.number = 0
        self.deadline = 0
        self.then: Callable[[Hold | Refused], None] | None = None

    def wait(self, then: Callable[[Hold | Refused], None]) -> None:
        self.then = then

    def cancel(self) -> None:
        self.then = None
        self.worker.forget(self)
