"""What one request of a client may cost, and what it came to: from its admission to its row in the ledger.

A request may take several of an engine's: several answers, a second try, a copy for comparison. One grant is for all
of them. It is closed when the client has its end and no engine works for it any more; for the usual request, one of an
engine's, both are the same moment, and that is before the client's answer is on its way.
"""

from __future__ import annotations

from time import perf_counter, time
from typing import TYPE_CHECKING, Any

from pressroom.gateway._usage import TEMPLATE, UNBOUNDED
from pressroom.gateway.admission import Client, Refused
from pressroom.gateway.ledger.base import Counted, Outcome, Row
from pressroom.gateway.money.base import UNKNOWN, Hold, Pending
from pressroom.gateway.problems import Problem, server_error

if TYPE_CHECKING:
    from pressroom.cost import Price
    from pressroom.gateway.ledger.base import Ledger
    from pressroom.gateway.money.base import Treasury
    from pressroom.gateway.routes import Route
    from pressroom.kernel import LedgerSettings

_CLIENT_GONE = 499


class Books:
    """Where money is set aside and requests are written down; either may be missing."""

    __slots__ = ("content", "free_when_full", "ledger", "treasury")

    def __init__(
        self,
        treasury: Treasury | None = None,
        ledger: Ledger | None = None,
        *,
        free_when_full: bool = True,
        content: bool = False,
    ) -> None:
        #: Whether the ledger wants the texts of answers.
        self.content = content
        self.treasury = treasury
        self.ledger = ledger
        self.free_when_full = free_when_full

    @classmethod
    def of(cls, settings: LedgerSettings, treasury: Treasury, ledger: Ledger) -> Books:
        """As the settings of the ledger have it."""
        return cls(treasury, ledger, free_when_full=settings.when_full == "free", content=settings.content != "none")


class Grant:
    """One request of a client. `answers` is how many it asks for."""

    __slots__ = (
        "_books", "_covered", "_dearest", "_ended", "_fields", "_hold", "_running", "_share", "answers", "began",
        "bound", "client", "guarded", "parts", "row",
    )  # fmt: skip

    def __init__(self, books: Books, client: Client, fields: dict[str, Any], *, id: str, door: str) -> None:
        self._books = books
        self._fields = fields
        self._hold: Hold | None = None
        self._running = 0
        self._ended = False
        self.answers = 1
        #: The most tokens that all its prompts together can have, where it has several answers; 0: see `cover`.
        self.bound = 0
        #: How many of an engine's requests it takes, if all goes well.
        self.parts = 1
        self._covered = 0
        self._dearest = 0
        self._share = 0
        self.began = perf_counter()
        self.client = client
        #: Whether somebody else than the one engine's request says when the client has its end (`end`).
        self.guarded = False
        row = self.row = Row(id, time())
        caller = client.caller
        row.key, row.team, row.tag = caller.key, caller.team, client.tag
        row.model, row.door = fields["model"], door
        row.stream = bool(fields.get("stream"))
        row.prompt = fields
        user = fields.get("safety_identifier") or fields.get("user")
        if user:
            row.user = user

    # Before an engine is asked.

    def cover(self, price: Price | None, *, size: int, context: int, prompt: int = 0) -> Refused | Pending | None:
        """Set aside the most that one of its answers can come to at this price, for all of its answers.

        `size` is the length of the body in bytes, which bounds the tokens of the prompt as long as `prompt` does not
        say how many there are; `context` is the engine's (0: not known). Called again for each engine that is asked;
        what was set aside before counts. What a Pending gives later is for `covered`.
        """
        treasury = self._books.treasury
        if treasury is None:
            return None
        prompt = prompt or size + TEMPLATE
        if context and prompt > context:
            prompt = context
        completion = self._most(context, prompt)
        answers, parts = self.answers, self.parts
        if price is not None and price.services:
            price = price.at_service(self._fields.get("service_tier") or "")
        read, written = self.bound or prompt * answers, completion * answers
        tokens = read + written
        nano = UNKNOWN
        if price is not None:
            nano = price.nano(prompt=read, completion=written)
            if nano and answers > 1:  # each answer is rounded up to a whole nano-dollar by itself
                nano += (price.request_nano + 1) * (answers - 1)
        hold = self._hold
        self._covered += 1
        if hold is not None:
            return self._cover_more(hold, -(-tokens // parts), nano if nano < 0 else -(-nano // parts))
        row = self.row
        found = treasury.admit(
            self.client.caller, row.model, tokens=tokens, nano_usd=nano, request_id=row.id, at=row.at
        )
        # By what it is not: to ask an abstract class for its instances takes as long as all of this.
        return found if isinstance(found, Refused | Pending) else self.covered(found)

    def covered(self, found: Hold | Refused) -> Refused | None:
        """Take what was set aside, and write down that it is."""
        if isinstance(found, Refused):
            return found
        if found is self._hold:
            return None if self._write_opened(found) else Refused(_not_written(), "ledger")
        if self._hold is not None:
            # Two parts asked while the owner of the money thought it over; the first of them holds for all.
            found.settle(tokens=0, nano_usd=0)
            return None
        books = self._books
        ledger = books.ledger
        if ledger is not None:
            if found.counts or found.nano_usd > 0:
                opened = self._write_opened(found)
            else:
                opened = books.free_when_full or not ledger.full
            if not opened:
                found.settle(tokens=0, nano_usd=0)
                return Refused(_not_written(), "ledger")
        self._hold = found
        self._dearest = max(0, -(-found.nano_usd // self.parts))
        return None

    def _cover_more(self, hold: Hold, tokens: int, nano: int) -> Refused | Pending | None:
        """Another engine is asked for a part of it, which can come to so much: beside what was used, what the engines
        that work now can come to, and the parts that nobody has been asked for yet."""
        row = self.row
        open_parts = self._running + 1 + max(0, self.parts - self._covered)
        tokens = row.prompt_tokens + row.completion_tokens + tokens * open_parts
        if nano >= 0:
            self._dearest = max(self._dearest, nano)
            nano = row.nano_usd + self._dearest * open_parts
            if tokens <= hold.tokens and nano <= hold.nano_usd:
                return None
        refused = hold.extend(tokens=tokens, nano_usd=nano)
        if refused is None and not self._write_opened(hold):
            return Refused(_not_written(), "ledger")
        return refused

    def _write_opened(self, hold: Hold) -> bool:
        row, ledger = self.row, self._books.ledger
        if ledger is None or not (hold.counts or hold.nano_usd > 0):
            return True
        return ledger.opened(row.id, row.at, row.key, row.team, row.model, hold.tokens, hold.nano_usd)

    def cover_hit(self) -> Refused | Pending | None:
        """It is to be answered with what was kept: that takes one request of the rate, no tokens and no money."""
        treasury, row = self._books.treasury, self.row
        if treasury is None:
            return None
        found = treasury.admit(self.client.caller, row.model, tokens=0, nano_usd=0, request_id=row.id, at=row.at)
        return found if isinstance(found, Refused | Pending) else self.held(found)

    def held(self, found: Hold | Refused) -> Refused | None:
        """What a Pending of `cover_hit` gave."""
        if isinstance(found, Refused):
            return found
        self._hold = found
        return None

    def hit(self, route: Route, kind: str) -> None:
        """It is answered with what was kept."""
        row = self.row
        row.cache, row.status = kind, 200
        row.branch, row.ref, row.digest, row.engine = route.branch, route.ref, route.digest, route.engine
        self._close()

    def usage(self) -> dict[str, Any]:
        """What it came to, as an answer says it."""
        row = self.row
        return {
            "prompt_tokens": row.prompt_tokens,
            "completion_tokens": row.completion_tokens,
            "total_tokens": row.prompt_tokens + row.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": row.cached_tokens},
        }

    def _most(self, context: int, prompt: int) -> int:
        """The most tokens that one answer is taken to have."""
        if "input" in self._fields:
            return 0
        return self.most(context) or (context - min(prompt, context) if context else UNBOUNDED)

    def most(self, context: int) -> int:
        """The bound that the request gives for the tokens of one of an engine's answers; 0 where it gives none."""
        fields = self._fields
        given = fields.get("max_completion_tokens") or fields.get("max_tokens") or fields.get("n_predict")
        if not given or given < 0:
            return 0
        return min(int(given), context) if context else int(given)

    # While engines work for it.

    def enter(self) -> None:
        """An engine is asked."""
        self._running += 1

    def leave(
        self,
        status: int,
        route: Route | None,
        price: Price | None,
        *,
        prompt: int = 0,
        completion: int = 0,
        cached: int = 0,
        counted: Counted = Counted.NONE,
        first_s: float = 0.0,
    ) -> None:
        """An engine is done with it, and it came to this there. `status` is what its client is told, if it is this one
        that it hears."""
        self._running -= 1
        row = self.row
        row.tries += 1
        if counted is not Counted.NONE:
            row.prompt_tokens += prompt
            row.completion_tokens += completion
            row.cached_tokens += cached
            if row.counted is not Counted.COUNTED:
                row.counted = counted
            if price is not None:
                if price.services:
                    price = price.at_service(self._fields.get("service_tier") or "")
                row.nano_usd += price.nano(prompt=prompt, completion=completion, cached=cached)
        # Of several that worked on it, the row names who answered, else who got furthest, the last of them.
        share = 2 if status == 200 or first_s else 1 if counted is not Counted.NONE else 0
        if route is not None and share >= self._share:
            self._share = share
            row.branch, row.ref, row.digest, row.engine = route.branch, route.ref, route.digest, route.engine
        if first_s and not row.first_s:
            row.first_s = first_s
        if not self.guarded:
            row.status = status
            self._close()
        elif self._ended and not self._running:
            self._close()

    def end(self, status: int) -> None:
        """The client has its end, or is gone. For a guarded request."""
        if self._ended:
            return
        self._ended = True
        self.row.status = status
        if not self._running:
            self._close()

    def _close(self) -> None:
        row, books = self.row, self._books
        if not row.tries and self._hold is None and not row.cache:
            return  # it was not admitted anywhere
        row.total_s = perf_counter() - self.began
        status = row.status
        if status != 200:
            row.outcome = Outcome.LEFT if status == _CLIENT_GONE else Outcome.FAILED
        hold, self._hold = self._hold, None
        if hold is not None:
            hold.settle(tokens=row.prompt_tokens + row.completion_tokens, nano_usd=row.nano_usd)
        if books.ledger is not None:
            books.ledger.append(row)


def _not_written() -> Problem:
    message = "The request cannot be written into the ledger: the disk is full. Nothing was asked."
    return server_error(503, message, code="ledger_full", retry_after_s=30)
