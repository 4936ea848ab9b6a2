"""One request's way to an engine and its answer's way back: a state machine of callbacks.

The engine is chosen when the request is sent, not when it comes: until the first byte of an answer it may wait for an
engine that starts, and be sent again where one was lost.
"""

from __future__ import annotations

from asyncio import get_running_loop
from contextlib import suppress
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

import orjson

from pressroom.gateway._counting import Count, countable
from pressroom.gateway._usage import Counts, counts_of, tokens_in
from pressroom.gateway.asking import Asked, Receiver
from pressroom.gateway.ledger.base import Counted
from pressroom.gateway.problems import Problem, server_error
from pressroom.gateway.protocols._engine_errors import translated
from pressroom.gateway.protocols.openai import CHAT, EMBEDDING, ENDPOINTS, Endpoint, beyond
from pressroom.gateway.upstream import Call, Failure, Upstream

if TYPE_CHECKING:
    from collections.abc import Callable

    from pressroom.gateway._grant import Grant
    from pressroom.gateway._response import Head
    from pressroom.gateway._waiting import WaitingRoom
    from pressroom.gateway.admission import Caller
    from pressroom.gateway.ledger.base import Row
    from pressroom.gateway.metrics import Metrics, Series
    from pressroom.gateway.policy.base import Asking
    from pressroom.gateway.routes import Lane, Route, RouteTable, Served, Tally
    from pressroom.kernel import GatewaySettings

# An answer that is not streamed is kept until it is whole, so that an engine that dies within it is still an error.
_ANSWER_LIMIT = 64 * 2**20
# The end of a stream that is kept for its figures: the last frame with `usage` and `timings` is under 2 kB.
_TAIL = 8_192
_TAIL_LIMIT = 65_536
_DONE = b"data: [DONE]"
_ERROR = b'data: {"error":'
_CLIENT_GONE = 499
_DELTA = b'"delta":{'
# An engine that could not be reached is passed over for this long, unless it says that it is back.
_SHUNNED_S = 0.25
# What comes of an answer that is not in the protocol's shape, where its shape must change.
_ODD = (ValueError, LookupError, TypeError, AttributeError)
# An answer that is not streamed is moved to another engine only in its first moments (seconds).
_YOUNG_S = 1.0
# A client that leaves sooner has changed its mind.
_IMPATIENT_S = 0.5
# What an engine gets to say how far it came with a request that was cut.
_LAST_WORDS_S, _WHOLE_S = 1.0, 60.0
# One that waits is looked at more often than this.
_LAST_CHANCE_S = 1.0
# What a second try cannot make worse: the engine was not there, or it was lost with the answer.
_LOST = frozenset((Failure.UNREACHABLE, Failure.LOST, Failure.CUT))


class House:
    """What every request shares."""

    __slots__ = ("_closing", "counting", "cut", "metrics", "routes", "settings", "upstream", "waiting")

    def __init__(
        self,
        settings: GatewaySettings,
        routes: RouteTable,
        upstream: Upstream,
        metrics: Metrics,
        waiting: WaitingRoom,
    ) -> None:
        self.settings = settings
        self.routes = routes
        self.upstream = upstream
        self.metrics = metrics
        self.waiting = waiting
        self._closing = False
        #: Requests whose clients left and whose engines still say how far they came, and those whose prompts are being
        #: counted for the ledger: what is to be called with None where there is no time for that.
        self.cut: dict[Generation, None] = {}
        self.counting: dict[Callable[[int | None], None], None] = {}

    @property
    def closing(self) -> bool:
        """Whether the gateway ends: nothing more is asked of an engine."""
        return self._closing

    def close(self) -> None:
        """What was cut is written down as far as it is known: the loop ends, and the engines' last words with it."""
        self._closing = True
        for generation in list(self.cut):
            generation.give_up()
        for counted in list(self.counting):
            counted(None)

    def refused(self, model: str, door: str, status: int) -> None:
        """Count what was answered without an engine. A name of no model is nobody's."""
        known = model and self.routes.served(model) is not None
        self.metrics.of(model if known else "").count(door, status)

    def told(self, row: Row, status: int, began: float, first: float) -> None:
        """Count a request of which several of an engine's may be part: when it began and had its first word (0: none),
        in seconds of the performance counter."""
        series = self.metrics.of(row.model)
        series.count(row.door, status)
        series.took(row.door, perf_counter() - began)
        if first:
            series.first_tokens.observe(first - began)
        if status == _CLIENT_GONE:
            series.disconnects += 1


class Prepared:
    """What is the same for every request on a route: made once."""

    __slots__ = ("address", "request_heads", "series")

    def __init__(self, route: Route, series: Series) -> None:
        self.address = (route.host, route.port)
        self.series = series
        self.request_heads = {
            endpoint.path: (
                f"POST {endpoint.path.decode()} HTTP/1.1\r\nHost: {route.host}:{route.port}\r\n"
                "Content-Type: application/json\r\nContent-Length: "
            ).encode()
            for endpoint in ENDPOINTS
        }


class Generation(Call, Asked):
    """A request whose fields passed every check. `start` sends it; it ends by itself, exactly once."""

    __slots__ = (
        "_alone",
        "_asking",
        "_began",
        "_body",
        "_branch",
        "_chosen",
        "_cut",
        "_door",
        "_ended",
        "_endpoint",
        "_fields",
        "_first",
        "_grant",
        "_head",
        "_house",
        "_lane",
        "_lost",
        "_paused",
        "_pieces",
        "_receiver",
        "_sent",
        "_series",
        "_size",
        "_streaming",
        "_tally",
        "_texts",
        "_tries",
        "deadline",
        "model",
    )

    def __init__(
        self,
        house: House,
        fields: dict[str, Any],
        endpoint: Endpoint,
        receiver: Receiver,
        *,
        body: bytes,
        door: str,
        grant: Grant,
        branch: str = "",
        asking: Asking | None = None,
    ) -> None:
        super().__init__()
        self._house = house
        self._grant = grant
        #: Whether it is all of its client's request: else that is counted by who holds its parts, or by nobody.
        self._alone = not grant.guarded and not grant.row.shadow
        grant.enter()
        self._branch = branch
        self._asking = asking
        self._texts = 0  # pieces of text in what of the stream is not kept
        self._cut = False
        self._fields = fields
        self._endpoint = endpoint
        self._receiver = receiver
        self._body = body
        self._door = door
        self._began = perf_counter()
        self._first = 0.0
        self._lane: Lane | None = None
        self._tally: Tally | None = None
        self._chosen: Served | None = None  # where it was chosen among several
        self._series: Series | None = None
        self._head: Head | None = None
        self._streaming = False
        self._ended = False
        self._paused = False
        self._pieces: list[bytes] = []
        self._size = 0
        self._tries = 0
        self._lost: Problem | None = None
        self._sent = 0.0
        self.model: str = fields["model"]
        #: When it has waited long enough for an engine, in seconds of the monotonic clock; 0 while it has not waited.
        self.deadline = 0.0

    def start(self, served: Served | None = None) -> None:
        """Send it to an engine, or let it wait for one. `served` are those, if it was just looked for."""
        house = self._house
        while True:
            if served is None:
                served = self._served()
            if served is None:
                self._refuse(self._nobody())
                return
            lane = served.lanes[0]
            if served.chooser is not None or lane.shunned_until or not lane.route.ready:
                found = self._choose(served)
                if found is None:
                    return
                lane = found
            problem = beyond(self._fields, self._endpoint, lane.route.capabilities)
            if lane.route.elsewhere and self._asking is not None and self._asking.own_only:
                problem = _must_stay(lane.route)
            if problem is not None:
                self._refuse(problem)
                return
            if house.routes.enter(lane):
                break
            served = None  # the routes were replaced this very moment
        if lane.prepared is None:
            lane.prepared = Prepared(lane.route, house.metrics.of(lane.route.model))
        self._lane, self._tally = lane, served.tally
        if served.chooser is not None:
            self._chosen = served
            lane.unbegun[self] = None
            self._sent = perf_counter()
        prepared: Prepared = lane.prepared
        if self._series is None:
            self._series = prepared.series
            self._series.in_flight += 1
        body = self._body
        head = prepared.request_heads[self._endpoint.path] + b"%d\r\n\r\n" % len(body)
        house.upstream.send(prepared.address, head, body, self)

    def _served(self) -> Served | None:
        """What may answer: the model, or its branch. Where a model has no branches any more, it answers for them."""
        served = self._house.routes.served(self.model)
        if served is not None and self._branch and served.branches:
            return served.branches.get(self._branch)
        return served

    def _nobody(self) -> Problem:
        if self._house.routes.served(self.model) is None:
            return no_model(self._house.routes, self.model)
        return branch_gone(self.model, self._branch)

    def _choose(self, served: Served) -> Lane | None:
        """The lane to ask; None where there is none now, and the request waits or is refused."""
        now = monotonic()
        lanes = [lane for lane in served.lanes if lane.route.ready and lane.shunned_until <= now]
        if lanes:
            chooser = served.chooser
            if chooser is None or len(lanes) == 1:
                return lanes[0]
            chosen = chooser.choose(lanes, self._fields, now, waiting=self._house.waiting.of(self.model))
            if chooser.moving:
                chooser.moving = False
                for other in chooser.others(lanes):
                    for generation in list(other.unbegun):
                        generation.move(now)
            if chosen is not None:
                return chosen
            # A change to a better engine is worth a wait, but no refusal.
            deadline = self.deadline or now + self._house.settings.wait_s
            if self._house.waiting.full or now + _LAST_CHANCE_S >= deadline:
                return lanes[0]
        waits = [lane.route for lane in served.lanes if lane.route.ready or lane.route.coming]
        if waits:
            self._wait(waits[0], now)
        else:
            self._refuse(_not_ready(served.route))
        return None

    def _wait(self, route: Route, now: float) -> None:
        """Wait until the routes change, or until an engine that was lost may be tried again."""
        house = self._house
        if not self.deadline:
            self.deadline = now + house.settings.wait_s
        if not route.ready:
            house.routes.ask_for(self.model, now)  # also where this one does not wait: the next finds it awake
        if now >= self.deadline or not house.waiting.admit(self):
            self._refuse(self._lost or _not_ready(route))

    def waited_too_long(self) -> None:
        """Nothing came in the time a request may wait."""
        served = self._served()
        if served is None:
            self._refuse(self._nobody())
        else:
            self._refuse(self._lost or _not_ready(served.route))

    # What the engine says.

    def on_head(self, head: Head) -> None:
        self._head = head
        self._streaming = head.status == 200 and head.content_type.startswith(b"text/event-stream")
        if self._paused and self.connection is not None:
            self.connection.pause()  # the client was slow before there was anything to hold back

    def on_data(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        if self._streaming:
            if not self._fields.get("stream"):
                self._house.upstream.cancel(self)
                self.on_failed(Failure.MALFORMED, "it sent a stream, and was asked for an answer in one piece")
                return
            if not self._cut:
                if not self._first:
                    self._first = perf_counter()
                    assert self._lane is not None
                    self._lane.unbegun.pop(self, None)
                    self._receiver.begin(self._lane.route)
                    if self._endpoint is CHAT:
                        data = with_role(data)
                if _ERROR in data and self._broke(data):
                    return
                try:
                    self._receiver.data(data)
                except _ODD as error:
                    self._house.upstream.cancel(self)
                    self.on_failed(Failure.MALFORMED, f"its answer cannot be read: {error!r}")
                    return
            if self._size > _TAIL_LIMIT:
                whole = b"".join(self._pieces)
                tail = whole[-_TAIL:]
                self._texts += tokens_in(whole[:-_TAIL])
                self._pieces, self._size = [tail], len(tail)
        elif self._size > _ANSWER_LIMIT:
            self._house.upstream.cancel(self)
            self.on_failed(Failure.MALFORMED, f"its answer is over {_ANSWER_LIMIT} bytes")

    def _broke(self, data: bytes) -> bool:
        """An event of the stream says that the engine, or the vendor behind it, failed: what came before it goes to the
        client, and then the error. False where that is no error after all."""
        place = data.find(_ERROR)
        event = data[place:].partition(b"\n\n")[0]
        try:
            said = orjson.loads(event.partition(b"data:")[2])["error"]
            message, code, kind = said["message"], said.get("code"), said.get("type")
        except _ODD:
            return False
        self._house.upstream.cancel(self)
        if place:
            with suppress(*_ODD):
                self._receiver.data(data[:place])
        self._leave(502, b"".join(self._pieces))
        self._receiver.failed(Problem(502, str(message), type=str(kind or "server_error"), code=code and str(code)))
        return True

    def on_end(self) -> None:
        head, lane = self._head, self._lane
        assert head is not None and lane is not None
        if self._cut:
            self._leave(_CLIENT_GONE, b"".join(self._pieces))
            return
        if self._streaming:
            if not self._tail().rstrip().endswith(_DONE):
                self.on_failed(Failure.CUT, "its stream ended before it was complete")
                return
            self._leave(200, b"".join(self._pieces))
            try:
                self._receiver.end()
            except _ODD as error:
                self._receiver.failed(_problem(Failure.MALFORMED, f"its answer cannot be read: {error!r}"))
            return
        answer = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        if head.status == 200:
            self._leave(200, answer)
            try:
                self._receiver.whole(answer, lane.route)
            except _ODD as error:
                self._receiver.failed(_problem(Failure.MALFORMED, f"its answer cannot be read: {error!r}"))
        else:
            problem = translated(head.status, answer, param=self._endpoint.conversation, retry_after_s=head.retry_s)
            self._refuse(problem)

    def on_failed(self, failure: Failure, detail: str) -> None:
        if self._cut:
            self._leave(_CLIENT_GONE, b"".join(self._pieces))
            return
        if self._first:
            tail = self._tail()
            self._leave(502, b"".join(self._pieces))
            # The engine may have died within a frame: end it, so that what follows is a frame of its own.
            if tail and not tail.endswith(b"\n\n") and failure is not Failure.MALFORMED:
                with suppress(*_ODD):
                    self._receiver.data(b"\n\n")
            self._receiver.failed(_problem(failure, detail))
            return
        problem = _problem(failure, detail)
        if not self._again(failure, problem):
            self._refuse(problem)

    def _again(self, failure: Failure, problem: Problem) -> bool:
        """Send it once more, where that may help: nothing of an answer has reached the client."""
        house, lane = self._house, self._lane
        assert lane is not None
        if failure not in _LOST or (failure is Failure.UNREACHABLE and not house.settings.retries):
            return False
        if failure is not Failure.UNREACHABLE:
            # The engine had this request when it was lost. It may be the request that ends engines.
            if self._tries >= house.settings.retries:
                return False
            self._tries += 1
        now = monotonic()
        if not self.deadline:
            self.deadline = now + house.settings.wait_s
        if now >= self.deadline:
            return False
        self._lost = problem
        assert self._series is not None
        self._series.retries += 1
        lane.shunned_until = now + _SHUNNED_S
        self._restart(now)
        return True

    def move(self, now: float) -> None:
        """Take it from an engine that has not begun to answer, to be sent to another; an answer that is not streamed
        and may be nearly done stays."""
        if self._ended or self._lane is None:
            return  # another that was moved before it took it along
        if self._fields.get("stream") or perf_counter() - self._sent < _YOUNG_S:
            self._house.upstream.cancel(self)
            self._restart(now)

    def _restart(self, now: float) -> None:
        """Send it once more, as if nothing had been."""
        self._give_back(now)
        self._head = None
        self._pieces, self._size, self._streaming, self.retried = [], 0, False, False
        self.start()

    # What the client does.

    def cancel(self) -> None:
        if self._ended:
            return
        house, lane = self._house, self._lane
        house.waiting.leave(self)
        if self._series is not None and self._alone:
            self._series.disconnects += 1
        can = lane.route.capabilities if lane is not None else None
        if can is not None and (can.says_counts or can.finishes) and house.upstream.half_close(self):
            # It stops, and says in a moment how far it came: what was made is paid for.
            self._ended = self._cut = True
            house.cut[self] = None
            # One that is not streamed is made to its end by some engines, who cannot be stopped then.
            get_running_loop().call_later(_LAST_WORDS_S if self._first else _WHOLE_S, self.give_up)
            return
        reached = self.connection is not None
        house.upstream.cancel(self)
        self._leave(_CLIENT_GONE, b"".join(self._pieces), reached=reached)

    def give_up(self) -> None:
        """Wait no longer for how far it came."""
        if self._lane is not None:
            self._house.upstream.cancel(self)
            self._leave(_CLIENT_GONE, b"".join(self._pieces))

    def pause(self) -> None:
        self._paused = True
        if self.connection is not None:
            self.connection.pause()

    def resume(self) -> None:
        self._paused = False
        if self.connection is not None:
            self.connection.resume()

    def _tail(self) -> bytes:
        return b"".join(self._pieces)[-_TAIL:]

    def _refuse(self, problem: Problem) -> None:
        self._leave(problem.status, b"")
        self._receiver.failed(problem)

    def _give_back(self, now: float) -> None:
        lane, self._lane = self._lane, None
        if lane is not None:
            lane.load.running -= 1
            lane.load.used = now
            lane.unbegun.pop(self, None)
            if self._chosen is not None and self._chosen.chooser is not None:
                self._chosen.chooser.ended(self._chosen.lanes, now)
            if not lane.load.running and self._house.waiting.of(self.model):
                self._house.waiting.changed(self.model)  # a change to another kind of engine may wait for this

    def _leave(self, status: int, answer: bytes, *, reached: bool = True) -> None:
        """Write the figures down and give the place back. `answer` is all that is known of the answer; of one that was
        cut, `reached` says whether the engine had it."""
        self._ended = True
        self._house.cut.pop(self, None)
        lane, grant = self._lane, self._grant
        self._give_back(monotonic())
        series = self._series
        if series is None:  # it never came to an engine
            if self._alone:
                self._house.refused(self.model, self._door, status)
            grant.leave(status, None, None)
            return
        now = perf_counter()
        series.in_flight -= 1
        first_s = self._first - self._began if self._first else 0.0
        if self._alone:
            series.count(self._door, status)
            series.took(self._door, now - self._began)
            if first_s:
                series.first_tokens.observe(first_s)
        if self.retried:
            series.retries += 1
        if lane is None:
            grant.leave(status, None, None)
            return
        tally = self._tally
        if tally is not None:
            waited = now - self._began
            if status == _CLIENT_GONE and (self._first or waited < _IMPATIENT_S):
                tally.left += 1
            else:
                # Whoever gave up before a first word was not answered: a limit of the policy, or a client.
                failed = status >= 499
                tally.failed += failed
                tally.answered += not failed
                tally.latest.append((first_s or waited, not failed))
        if not answer and (status != _CLIENT_GONE or not reached):
            grant.leave(status, lane.route, lane.price, first_s=first_s)
            return
        found = counts_of(
            answer,
            size=len(self._body),
            most=grant.most(lane.route.context),
            before=self._texts if self._streaming else None,
            cut=self._cut,
            own=not lane.route.elsewhere,
            embeds=self._endpoint is EMBEDDING,
        )
        if found.disputed:
            grant.row.verdicts.append("usage_disputed")
        house = self._house
        unknown = self._cut and found.counted is Counted.COUNTED and not house.closing
        if not unknown or not countable(lane, self._endpoint, self._fields):
            self._settle(status, lane, found, first_s)
            return

        def counted(prompt: int | None) -> None:
            if counted in house.counting:
                del house.counting[counted]
                self._settle(status, lane, found if prompt is None else found._replace(prompt=prompt), first_s)

        # Nobody waits for it any more: the prompt is counted by who read it.
        house.counting[counted] = None
        Count(house.upstream, lane, self._endpoint, self._fields, counted)

    def _settle(self, status: int, lane: Lane, found: Counts, first_s: float) -> None:
        assert self._series is not None
        self._series.prompt_tokens += found.prompt
        self._series.generation_tokens += found.completion
        self._grant.leave(
            status,
            lane.route,
            lane.price,
            prompt=found.prompt,
            completion=found.completion,
            cached=found.cached,
            counted=found.counted,
            first_s=first_s,
        )


def no_model(routes: RouteTable, name: str, caller: Caller | None = None) -> Problem:
    """Nothing answers to this name, or nothing that `caller` may ask: a key does not learn what there is for others."""
    from pressroom.kernel import did_you_mean

    name = name[:200]  # comparing takes time that grows with the length
    known = [route.model for route in routes.all() if caller is None or caller.may_ask(route.model)]
    hint = did_you_mean(name, known, otherwise=f"There are: {', '.join(known[:20])}." if known else "")
    message = f"The model `{name}` does not exist. {hint}".strip()
    return Problem(404, message, code="model_not_found")


def branch_gone(model: str, branch: str) -> Problem:
    """The route that was chosen was taken away; another may answer."""
    message = f"The route '{branch}' of the model '{model}' was taken away just now."
    return server_error(503, message, code="model_not_ready", retry_after_s=1)


def _not_ready(route: Route) -> Problem:
    message = f"The model '{route.model}' is not ready: {route.detail or 'it is starting'}."
    return server_error(503, message, code="model_not_ready", retry_after_s=route.retry_after_s)


def _must_stay(route: Route) -> Problem:
    message = f"The request may not leave for a vendor, and nothing else answers for the model '{route.model}' now."
    return server_error(503, message, code="model_not_ready", retry_after_s=route.retry_after_s)


def _problem(failure: Failure, detail: str) -> Problem:
    if failure is Failure.UNREACHABLE:
        return server_error(503, f"The engine cannot be reached: {detail}.", code="engine_unavailable", retry_after_s=1)
    if failure is Failure.SILENT:
        return server_error(504, f"The engine was too slow: {detail}.", code="engine_timeout")
    return server_error(502, f"The engine failed: {detail}.", code="engine_error")


def with_role(data: bytes) -> bytes:
    """The beginning of a chat stream with a role in its first delta, as the protocol has it.

    llama.cpp leaves the role out where the first token is only part of a character (an emoji, most of Chinese).
    """
    frame = data[: data.find(b"\n\n")]
    place = frame.find(_DELTA)
    if place < 0 or b'"role"' in frame:
        return data
    place += len(_DELTA)
    comma = b"" if data[place : place + 1] == b"}" else b","
    return data[:place] + b'"role":"assistant"' + comma + data[place:]
