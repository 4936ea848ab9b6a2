"""One request's way through the branches: asked one after another, or two at once, until one begins to answer.

A `Leg` is the visit to one branch with all its tries; it is the receiver that the branch speaks to. At most two legs
live at once (the second is a hedge). The first that begins wins: the other is cancelled, and from then on the client's
receiver hears this one alone, to its end, whatever that is. Everything that waits (a pause before a retry, a limit, a
hedge) is a timer of the event loop that dies with its leg; where none of it is set, there is no timer.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from pressroom.gateway.asking import Asked, Receiver
from pressroom.gateway.policy._legs import Leg
from pressroom.gateway.problems import Problem, server_error

if TYPE_CHECKING:
    from pressroom.gateway.policy._plan import Way
    from pressroom.gateway.policy._shadows import Copy
    from pressroom.gateway.policy.base import Asking, Start
    from pressroom.gateway.policy.steering import Steering

# What comes of a piece of an answer that is not in the protocol's shape, where its shape must change on the way.
_ODD = (ValueError, LookupError, TypeError, AttributeError)


class Steered(Asked):
    """A request under way."""

    __slots__ = (
        "_after", "_allowed", "_deadline", "_hedge", "_later", "_leg", "_limit", "_over", "_paused", "_rival",
        "asking", "copy", "receiver", "start", "steering", "winner",
    )  # fmt: skip

    def __init__(
        self,
        steering: Steering,
        asking: Asking,
        receiver: Receiver,
        start: Start,
        later: tuple[Way, ...],
        allowed: frozenset[str] | None,
    ) -> None:
        self.steering = steering
        self.asking = asking
        self.receiver = receiver
        self.start = start
        #: The copy of it that another branch gets, to be compared.
        self.copy: Copy | None = None
        self._later = later
        self._after = 0
        self._allowed = allowed
        self._leg: Leg | None = None
        self._rival: Leg | None = None
        #: The one that answers, once there is one.
        self.winner: Leg | None = None
        self._over = False
        self._paused = False
        self._limit: asyncio.TimerHandle | None = None
        self._hedge: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        steering.under_way += 1

    def ask(self, way: Way) -> None:
        """Ask the first branch."""
        total = self.steering.policy.limits.total_s
        if total is not None:
            loop = asyncio.get_running_loop()
            self._deadline = loop.time() + total
            self._limit = loop.call_at(self._deadline, self._too_long)
        self._visit(way)

    def _visit(self, way: Way) -> Leg:
        leg = Leg(self, way)
        if self._leg is None:
            self._leg = leg
        else:
            self._rival = leg
        mark = way.mark
        mark.requests += 1
        if mark.open_until and not mark.probing:
            leg.probes = mark.probing = True
        policy = self.steering.policy
        if policy.limits.first_token_s is not None:
            leg.limit = asyncio.get_running_loop().call_later(policy.limits.first_token_s, leg.too_slow)
        if policy.hedge_after_s is not None and self._rival is None:
            self._arm(policy.hedge_after_s)
        leg.send()
        return leg

    def _arm(self, after_s: float) -> None:
        if self._hedge is not None:
            self._hedge.cancel()
        self._hedge = asyncio.get_running_loop().call_later(after_s, self._hedged)

    def _next(self) -> Way | None:
        """The branch to ask next; None where there is none."""
        while self._after < len(self._later):
            way = self._later[self._after]
            self._after += 1
            if self._allowed is not None and way.name not in self._allowed:
                continue
            if way.available and (not way.mark.open_until or way.mark.passes(self.steering.clock())):
                return way
            way.mark.passed_over += 1
        return None

    def _hedged(self) -> None:
        """No first byte in time: ask the next one too."""
        self._hedge = None
        if self._over or self.winner is not None or self._leg is None:
            return
        way = self._next()
        if way is not None:
            way.mark.hedges += 1
            self._visit(way)

    # What the legs say.

    def won(self, leg: Leg) -> None:
        """This one begins to answer: no other will."""
        self.winner = leg
        leg.way.mark.won += 1
        if leg.limit is not None:
            leg.limit.cancel()
            leg.limit = None
        if self._hedge is not None:
            self._hedge.cancel()
            self._hedge = None
        if self._rival is not None:
            other = self._rival if self._leg is leg else self._leg
            self._leg, self._rival = leg, None
            if other is not None:
                other.cancel()
        if self.copy is not None and self.copy.way is leg.way:
            self.copy.cancel()  # it would be compared with itself
            self.copy = None
        if self._paused and leg.asked is not None:
            leg.asked.pause()

    def lost(self, leg: Leg, problem: Problem, *, final: bool) -> None:
        """This one gives no answer. Another is asked, unless this word is `final`."""
        leg.close()
        if self._leg is leg:
            self._leg, self._rival = self._rival, None
        else:
            self._rival = None
        if final:
            if self._leg is not None:
                other, self._leg = self._leg, None
                other.cancel()
            self.refuse(problem)
            return
        if self._leg is not None:  # the other one of two goes on alone
            if self.steering.policy.hedge_after_s is not None:
                self._arm(self.steering.policy.hedge_after_s)
            return
        way = self._next()
        if way is None:
            self.refuse(problem)
        else:
            way.mark.fallbacks += 1
            self._visit(way)

    def refuse(self, problem: Problem) -> None:
        """There is no answer."""
        if self.copy is not None:
            self.copy.cancel()
        self.ended()
        self.receiver.failed(problem)

    def ended(self) -> None:
        """Nothing of it is under way any more. A second call changes nothing."""
        if self._over:
            return
        self._over = True
        self.steering.under_way -= 1
        if self._limit is not None:
            self._limit.cancel()
        if self._hedge is not None:
            self._hedge.cancel()

    def allows(self, delay_s: float) -> bool:
        """Whether there is time for a pause of this length."""
        return not self._deadline or asyncio.get_running_loop().time() + delay_s < self._deadline

    @property
    def paused(self) -> bool:
        return self._paused

    def _too_long(self) -> None:
        self._limit = None
        if self._over:
            return
        for leg in (self._leg, self._rival):
            if leg is not None:
                leg.way.mark.fails(self.steering.policy.breaker, self.steering.clock())
        begun = self.winner is not None
        self._drop()
        total = self.steering.policy.limits.total_s
        problem = server_error(504, f"The answer took longer than {total:g} seconds.", code="engine_timeout")
        if begun:
            # It may have been cut within a frame: end it, so that what follows is a frame of its own.
            with suppress(*_ODD):
                self.receiver.data(b"\n\n")
        self.refuse(problem)

    def _drop(self) -> None:
        leg, rival = self._leg, self._rival
        self._leg = self._rival = None
        for each in (leg, rival):
            if each is not None:
                each.cancel()

    # What the client does.

    def cancel(self) -> None:
        if self._over:
            return
        self.ended()
        if self.copy is not None:
            self.copy.cancel()
        self._drop()

    def pause(self) -> None:
        self._paused = True
        # Who has not begun is not held back: it could not show that it is the first.
        if self.winner is not None and self.winner.asked is not None:
            self.winner.asked.pause()

    def resume(self) -> None:
        self._paused = False
        if self.winner is not None and self.winner.asked is not None:
            self.winner.asked.resume()
