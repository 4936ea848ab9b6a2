"""The cache of a gateway: looks up, keeps, and forgets what was used longest ago."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

import orjson

from pressroom.gateway import _sse
from pressroom.gateway.cache import _keys
from pressroom.gateway.cache._guards import alike
from pressroom.gateway.cache._hit import Entry, Hit
from pressroom.gateway.cache._keys import Key
from pressroom.gateway.cache._meaning import Embed, Seeking
from pressroom.gateway.cache._recording import ANSWER_LIMIT, Recording
from pressroom.gateway.cache._shapes import Assembly, complete, kept, taken_apart
from pressroom.gateway.cache._shelf import OVERHEAD, Shelf
from pressroom.gateway.protocols.openai import EMBEDDING

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pressroom.gateway.admission import Caller
    from pressroom.gateway.asking import Receiver
    from pressroom.gateway.cache.base import CachePolicy
    from pressroom.gateway.protocols.openai import Endpoint
    from pressroom.gateway.routes import Route, RouteTable

_log = logging.getLogger(__name__)

# Answers that cannot be read end here; what they raise says nothing more.
_ODD = (ValueError, LookupError, TypeError, AttributeError)
# Events of a stream that are put together in one turn of the event loop: under half a millisecond.
_SLICE = 256
# Streams that wait to be put together, each of `ANSWER_LIMIT` bytes at most.
_MOST_PENDING = 64
# An embedder that kept a request waiting for nothing is not asked again for so long.
_SHUNNED_S = 5.0
# Entries past their time that are forgotten whenever one is kept.
_SWEPT = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What came of one deployment's requests. All but `entries` and `bytes` only ever grow."""

    hits: int
    meaning_hits: int
    misses: int
    stores: int
    #: For want of room.
    evictions: int
    #: Answers that were not kept: cut, too large, or not understood.
    refused: int
    entries: int
    bytes: int


class Cache:
    """Answers that were given before, in memory: at most `max_bytes` over all deployments.

    Belongs to the gateway's event loop; nothing here waits, but `by_meaning` for a vector. An answer is given again
    only while a version that gave it answers in `routes`, and only to whom its policy says. Without `embed` nothing is
    found by meaning.
    """

    def __init__(
        self,
        routes: RouteTable,
        *,
        max_bytes: int = 1 << 29,
        embed: Embed | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._routes = routes
        self._max_bytes = max_bytes
        self._embed = embed
        self._clock = clock
        self._shelves: dict[str, Shelf] = {}
        self._bytes = 0
        self._pending = 0
        self._shunned: dict[str, float] = {}
        self._told: dict[str, str] = {}

    # Looking up.

    def look(
        self,
        policy: CachePolicy,
        caller: Caller,
        endpoint: Endpoint,
        fields: dict[str, Any],
        *,
        variant: str = "",
        fresh: bool = False,
    ) -> Hit | Key | None:
        """The answer to a request whose fields were checked; else the key to keep its answer with, or None where it is
        not to be kept.

        `variant` is whatever decides beside the fields who answers (the client's tag, an arm of a test): answers are
        not shared between variants. With `fresh` nothing is answered from the cache, and the new answer is kept.
        """
        if not policy.exact or not _keys.steady(policy, endpoint, fields):
            return None
        where = _keys.digest(endpoint, fields, variant=variant, scope=_keys.scope(policy, caller))
        if where is None:
            return None
        model = fields["model"]
        shelf = self._shelves.get(model)
        if shelf is None:
            if self._routes.served(model) is None:
                return None  # names come from clients: one that nothing answers to leaves no trace
            shelf = self._shelves[model] = Shelf()
        if fresh:
            return Key(policy, endpoint, fields, where)
        entry = shelf.entries.get(where)
        if entry is not None:
            streamed, with_usage = bool(fields.get("stream")), _wants_usage(fields)
            now = self._clock()
            if self._holds(shelf, entry, policy, model, now, usage=not streamed or with_usage):
                shelf.touch(entry, now)
                shelf.hits += 1
                return Hit(
                    entry,
                    endpoint,
                    streamed=streamed,
                    with_usage=with_usage,
                    kind="exact",
                    route=entry.route,
                    similarity=1.0,
                )
        key = Key(policy, endpoint, fields, where)
        meaning = policy.meaning
        if meaning is not None and self._embed is not None and (text := _keys.text_of(endpoint, fields)):
            group = _keys.around(key, fields, self._embedder(meaning.deployment))
            if group is not None:
                key.text, key.group, key.by_meaning = text, group, True
                key.with_usage = _wants_usage(fields)
                return key
        shelf.misses += 1
        return key

    def by_meaning(self, key: Key, then: Callable[[Hit | None], None]) -> None:
        """Look for the answer to a question alike, where `look` gave a key with `by_meaning`. `then` is called once,
        perhaps before this returns and at the latest after the policy's time, also where the client has left."""
        meaning, embed, shelf = key.policy.meaning, self._embed, self._shelves.get(key.model)
        assert key.by_meaning and meaning is not None and embed is not None
        if shelf is None or self._shunned.get(meaning.deployment, 0.0) > self._clock():
            self._not_found(key.model)
            then(None)
            return

        def found(vector: NDArray[Any] | None, too_late: bool) -> None:
            if too_late:
                self._shunned[meaning.deployment] = self._clock() + _SHUNNED_S
            elif vector is None:
                self._tell(meaning.deployment)
            key.vector = vector
            hit = self._alike(key, vector) if vector is not None else None
            if hit is None:
                self._not_found(key.model)
            then(hit)

        def late(vector: NDArray[Any]) -> None:
            key.vector = vector  # its answer is perhaps not there yet

        Seeking(found, late).start(embed, meaning.deployment, key.text, meaning.timeout_s)

    # Keeping.

    def recording(self, key: Key, receiver: Receiver) -> Recording:
        """A receiver that passes all on to `receiver`, and keeps the answer if it is complete."""
        return Recording(self, key, receiver)

    def keep(self, key: Key, body: bytes, route: Route) -> None:
        """Keep a whole answer, if it is one."""
        try:
            record = orjson.loads(body)
        except orjson.JSONDecodeError:
            self.passed_over(key)
            return
        self._keep(key, record, route)

    def keep_stream(self, key: Key, pieces: list[bytes], route: Route, usage: dict[str, Any] | None) -> None:
        """Keep what was streamed, if it is complete. A long one is put together over several turns of the loop."""
        events = taken_apart(b"".join(pieces))
        if not events or events[-1] != _sse.DONE:
            self.passed_over(key)
            return
        assembly = Assembly(key.endpoint)
        loop = None
        if len(events) > _SLICE:
            if self._pending >= _MOST_PENDING:
                self.passed_over(key)
                return
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:  # nobody waits for its next turn
                loop = None
        self._pending += 1

        def on(start: int) -> None:
            stop = len(events) if loop is None else start + _SLICE
            try:
                for event in events[start:stop]:
                    assembly.take(event)
                record = assembly.whole(usage) if stop >= len(events) else None
            except _ODD:
                self._pending -= 1
                self.passed_over(key)
                return
            if record is None:
                assert loop is not None
                loop.call_soon(on, stop)
                return
            self._pending -= 1
            self._keep(key, record, route)

        on(0)

    def passed_over(self, key: Key) -> None:
        """An answer came that is not kept."""
        shelf = self._shelves.get(key.model)
        if shelf is not None:
            shelf.refused += 1

    def forget(self, model: str) -> None:
        """Forget every answer of a deployment, and its figures."""
        shelf = self._shelves.pop(model, None)
        if shelf is not None:
            self._bytes -= shelf.bytes

    def snapshot(self) -> dict[str, Figures]:
        """The figures by deployment. Deployments that are gone are forgotten by it."""
        for model in [model for model in self._shelves if self._routes.served(model) is None]:
            self.forget(model)
        return {
            model: Figures(
                hits=shelf.hits,
                meaning_hits=shelf.meaning_hits,
                misses=shelf.misses,
                stores=shelf.stores,
                evictions=shelf.evictions,
                refused=shelf.refused,
                entries=len(shelf.entries),
                bytes=shelf.bytes,
            )
            for model, shelf in sorted(self._shelves.items())
        }

    # Within.

    def _holds(self, shelf: Shelf, entry: Entry, policy: CachePolicy, model: str, now: float, *, usage: bool) -> bool:
        """Whether an answer may still be given; one that may not is forgotten."""
        served = self._routes.served(model)
        if served is None or now - entry.at > policy.ttl_s or entry.route.digest not in shelf.versions(served):
            self._bytes -= shelf.drop(entry.where)
            return False
        return entry.usage or not usage

    def _alike(self, key: Key, vector: NDArray[Any]) -> Hit | None:
        meaning, shelf = key.policy.meaning, self._shelves.get(key.model)
        assert meaning is not None
        group = shelf.group(key.group) if shelf is not None else None
        if shelf is None or group is None:
            return None
        now = self._clock()
        for entry, cosine in group.nearest(vector, meaning.threshold):
            if not alike(key.text, entry.text, same_words=meaning.same_words):
                continue
            if self._holds(shelf, entry, key.policy, key.model, now, usage=not key.streamed or key.with_usage):
                shelf.touch(entry, now)
                shelf.meaning_hits += 1
                return Hit(
                    entry,
                    key.endpoint,
                    streamed=key.streamed,
                    with_usage=key.with_usage,
                    kind="meaning",
                    route=shelf.marked(entry.route, f"meaning;{cosine:.2f}"),
                    similarity=cosine,
                )
        return None

    def _not_found(self, model: str) -> None:
        shelf = self._shelves.get(model)
        if shelf is not None:
            shelf.misses += 1

    def _embedder(self, deployment: str) -> str:
        """Who makes vectors now: those of another version cannot be compared."""
        route = self._routes.get(deployment)
        return deployment if route is None else f"{deployment}@{route.digest}"

    def _tell(self, deployment: str) -> None:
        """Why there was no vector, in the log; once, until it is for another reason."""
        route = self._routes.get(deployment)
        if route is None:
            why = "there is no such deployment on this server"
        elif route.elsewhere:
            why = "it asks somebody else, and questions are not sent away to be compared"
        elif route.ready and not route.capabilities.embeddings:
            why = f"{route.ref or 'its model'} on {route.engine or 'its engine'} answers no /v1/embeddings"
        else:
            return  # it starts, or has failed this once
        if self._told.get(deployment) != why:
            self._told[deployment] = why
            _log.warning("nothing is found by meaning with the vectors of %r: %s", deployment, why)

    def _keep(self, key: Key, record: Any, route: Route) -> None:
        shelf = self._shelves.get(key.model)
        if shelf is None or route.cache:
            return  # forgotten meanwhile; or another cache's
        try:
            fits = complete(record, key.endpoint, key.answers)
        except _ODD:
            fits = False
        rest = kept(record) if fits else b""
        size = OVERHEAD + len(rest) + 4 * len(key.text)
        if key.vector is not None:
            size += 2 * key.vector.nbytes  # a matrix that grows has empty rows
        if not fits or len(rest) > ANSWER_LIMIT or size > min(key.policy.max_bytes, self._max_bytes):
            shelf.refused += 1
            return
        entry = Entry(
            key.where,
            rest,
            shelf.marked(route, "exact"),
            dated=key.endpoint is not EMBEDDING or "id" in record,
            usage=key.endpoint is EMBEDDING or bool(record.get("usage")),
            at=self._clock(),
            size=size,
            text=key.text if key.vector is not None else "",
        )
        self._bytes += shelf.put(entry)
        if key.vector is not None and key.policy.meaning is not None:
            shelf.mean(entry, key.group, key.vector, most=key.policy.meaning.max_entries)
        self._make_room(shelf, key.policy, entry.at)

    def _make_room(self, shelf: Shelf, policy: CachePolicy, now: float) -> None:
        """Forget what is too old or too much, the longest unused first."""
        for _ in range(_SWEPT):
            oldest = next(iter(shelf.entries.values()))
            if now - oldest.at <= policy.ttl_s:
                break
            self._bytes -= shelf.drop(oldest.where)
        while shelf.bytes > policy.max_bytes:
            self._evict(shelf)
        while self._bytes > self._max_bytes:
            self._evict(
                min(
                    (other for other in self._shelves.values() if other.entries),
                    key=lambda other: next(iter(other.entries.values())).used,
                )
            )

    def _evict(self, shelf: Shelf) -> None:
        self._bytes -= shelf.drop(next(iter(shelf.entries)))
        shelf.evictions += 1


def _wants_usage(fields: dict[str, Any]) -> bool:
    options = fields.get("stream_options")
    return bool(options and options.get("include_usage"))
