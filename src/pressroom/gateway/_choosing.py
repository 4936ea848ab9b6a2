"""Which of several engines of one model gets a request: by measured load, then by the prefix it has worked on before.

Two things are decided. Engines of different kinds are good at different loads (one answers a single client fast, the
other many at once), so the one that was measured best at the present load gets what comes. Two that work at the same
time on the same cores fall to a fraction of their speed, so a change of kind waits until what runs on the first is
done, for some seconds at most, and what has not begun there is moved. Among engines of the same kind, a request goes
where the beginning of its conversation was seen last, because that engine keeps it in its prefix cache; unless that
engine has much more to do than the others.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from math import log2
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pressroom.gateway.routes import Lane

#: Tokens a second that an engine was measured to give, by clients at once, ascending.
Speeds = Sequence[tuple[int, float]]

# A load that falls is believed with this half-life, so that the pause between two requests is not a new load. One that
# rises is believed at once: requests that wait are there.
_HALF_LIFE_S = 1.0
# What the other kind must be better by: figures of two measurements of the same differ by a few in a hundred.
_WORTH = 1.05
# How long what runs on the other kind may hold up a change. Longer answers share the machine with the next ones.
_DRAIN_S = 5.0
# How long a load must have fallen before requests wait for such a change: until then they go where the others are.
_FALLEN_S = 2.0
# Prefixes shorter than this (characters, about 64 tokens) are read again as fast as they are found.
_SHORTEST = 256
_REMEMBERED = 16_384
# Requests an engine may have more than the least busy one before its prefix cache is no reason any more.
_SLACK = 2

# More clients than any measurement has.
_MUCH = 1e6

_Address = tuple[str, int]


class Chooser:
    """Chooses among the lanes of one model. Belongs to the event loop, but for `speeds`, which a writer replaces."""

    def __init__(self) -> None:
        self.speeds: dict[str, Speeds] = {}
        #: Set when requests that have not begun on another kind should be moved; whoever does it takes it back.
        self.moving = False
        self._seen: OrderedDict[int, _Address] = OrderedDict()
        self._load = 0.0
        self._at = 0.0
        self._kind = ""
        self._wanted = ""
        self._wanted_since = 0.0

    def choose(self, lanes: Sequence[Lane], fields: dict[str, Any], now: float, *, waiting: int = 0) -> Lane | None:
        """The lane for a request with these fields, at `now` (seconds of the monotonic clock); None where it must wait
        for the change to another kind. `lanes` are those that can be asked, at least one; `waiting` are the requests
        for the model that have none yet."""
        kind = self._settled(lanes, now, waiting)
        if kind is None:
            return None
        usable = [lane for lane in lanes if lane.route.engine == kind] if kind else lanes
        if len(usable) == 1:
            return usable[0]
        keys = list(prefixes(fields))
        chosen = self._by_prefix(usable, keys) or min(usable, key=lambda lane: (lane.load.running, lane.load.used))
        for key in keys:
            self._seen[key] = (chosen.route.host, chosen.route.port)
            self._seen.move_to_end(key)
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return chosen

    def others(self, lanes: Sequence[Lane]) -> list[Lane]:
        """The lanes of other kinds than the one that is wanted."""
        wanted = self._wanted or self._kind
        return [lane for lane in lanes if lane.route.engine != wanted]

    def _settled(self, lanes: Sequence[Lane], now: float, waiting: int) -> str | None:
        """The kind of engine to ask: '' where it does not matter, None where a change waits for what runs."""
        wanted = self._best(lanes, now, waiting)
        kinds = {lane.route.engine for lane in lanes}
        if not wanted or wanted == self._kind or self._kind not in kinds:
            self._kind, self._wanted = wanted or self._kind, ""
            return wanted
        if wanted != self._wanted:
            self._wanted, self._wanted_since = wanted, now
            self.moving = self._rises(wanted)
        busy = any(lane.load.running for lane in lanes if lane.route.engine == self._kind)
        since = now - self._wanted_since - (0.0 if self._rises(wanted) else _FALLEN_S)
        if busy and since < 0:
            return self._kind
        if busy and since < _DRAIN_S:
            return None
        self._kind, self._wanted = wanted, ""
        return wanted

    def _best(self, lanes: Sequence[Lane], now: float, waiting: int) -> str:
        """The engine that was measured best at the present load, counting the request that is about to begin; '' where
        all are of one kind or nothing was measured."""
        self._note(1 + waiting + sum(lane.load.running for lane in lanes), now)
        kinds = {lane.route.engine for lane in lanes}
        if len(kinds) < 2:
            return ""
        rates = {kind: rate_at(self.speeds[kind], self._load) for kind in kinds if self.speeds.get(kind)}
        if not rates:
            return ""
        best = max(rates, key=lambda kind: rates[kind])
        if self._kind in rates and rates[best] <= rates[self._kind] * _WORTH:
            return self._kind
        return best

    def ended(self, lanes: Sequence[Lane], now: float) -> None:
        """A request has ended. Until then the load was what it was: it does not fall while nothing new comes."""
        self._note(1 + sum(lane.load.running for lane in lanes), now)

    def _note(self, running: int, now: float) -> None:
        self._load = max(running, self._load * 0.5 ** ((now - self._at) / _HALF_LIFE_S))
        self._at = now

    def _rises(self, wanted: str) -> bool:
        """Whether `wanted` is the engine for more load than the one that is asked now."""
        return rate_at(self.speeds[wanted], _MUCH) > rate_at(self.speeds.get(self._kind) or ((1, 0.0),), _MUCH)

    def _by_prefix(self, lanes: Sequence[Lane], keys: list[int]) -> Lane | None:
        least = min(lane.load.running for lane in lanes)
        by_address = {(lane.route.host, lane.route.port): lane for lane in lanes}
        for key in reversed(keys):
            found = by_address.get(self._seen.get(key, ("", 0)))
            if found is not None:
                # The longest prefix decides: a shorter one may have been seen everywhere.
                return found if found.load.running <= least + _SLACK else None
        return None


def rate_at(speeds: Speeds, clients: float) -> float:
    """Tokens a second at a number of clients, between two measured ones on a logarithmic scale; beyond the last, the
    last."""
    at = bisect_left(speeds, clients, key=lambda pair: pair[0])
    if at == 0:
        return speeds[0][1]
    if at == len(speeds):
        return speeds[-1][1]
    (low, slow), (high, fast) = speeds[at - 1], speeds[at]
    share = (log2(max(clients, 1)) - log2(low)) / (log2(high) - log2(low))
    return slow + (fast - slow) * share


def prefixes(fields: dict[str, Any]) -> Iterator[int]:
    """Hashes of the beginnings of a conversation, short to long: at the end of each message and at doubling lengths."""
    tools = fields.get("tools")
    so_far, length, mark = hash(str(tools)) if tools else 0, 0, _SHORTEST
    for text in _texts(fields):
        at = 0
        while length + len(text) - at >= mark:
            cut = at + mark - length
            so_far = hash((so_far, text[at:cut]))
            yield so_far
            length, at, mark = mark, cut, mark * 2
        if at < len(text):
            so_far = hash((so_far, text[at:]))
            length += len(text) - at
            if length >= _SHORTEST:
                yield so_far


def _texts(fields: dict[str, Any]) -> Iterator[str]:
    if "messages" in fields:
        for message in fields["messages"]:
            content = message.get("content")
            if isinstance(content, list):
                content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
            yield f"{message.get('role')}\n{content or ''}"
    else:
        prompt = fields.get("prompt", fields.get("input", ""))
        yield prompt if isinstance(prompt, str) else str(prompt)
