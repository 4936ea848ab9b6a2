"""Branches that do what a test says, a receiver that checks what it is told, and a loop whose time is the test's."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from pressroom.gateway.admission import Caller
from pressroom.gateway.asking import Asked, Receiver
from pressroom.gateway.ledger.base import Row
from pressroom.gateway.policy import Asking, Detectors, Policy, Steerings
from pressroom.gateway.problems import Problem, server_error
from pressroom.gateway.protocols.openai import CHAT, Endpoint
from pressroom.gateway.routes import Branch, Route, RouteTable, Served
from pressroom.text import Finding

#: What the tests' detectors take for personal, and for secret.
PERSONAL, SECRET = "alice@example.org", "sk-hidden"


class Loop(asyncio.SelectorEventLoop):
    """A loop that does not wait: where nothing is ready, its time moves on to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        wait = self._selector.select  # type: ignore[attr-defined]

        def select(timeout: float | None = None) -> Any:
            if timeout:
                self.now += timeout
            return wait(0 if timeout is not None else None)

        self._selector.select = select  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now

    @property
    def timers(self) -> int:
        """Timers that would still go off."""
        return len(self.waits)

    @property
    def waits(self) -> list[float]:
        """In how many seconds they would."""
        scheduled = self._scheduled  # type: ignore[attr-defined]
        return [timer.when() - self.now for timer in scheduled if not timer.cancelled()]


def run(test: Callable[[Loop], Coroutine[Any, Any, None]]) -> None:
    """Run `test` on such a loop. Its errors, and those of callbacks, are the caller's."""
    loop = Loop()
    wrong: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: wrong.append(context))
    try:
        loop.run_until_complete(test(loop))
    finally:
        loop.close()
    assert not wrong, wrong


class Try(Asked):
    """One try on a branch: the test says what comes of it."""

    def __init__(self, world: World, branch: str, receiver: Receiver, *, shadow: bool) -> None:
        self.world = world
        self.branch = branch
        self.receiver = receiver
        self.shadow = shadow
        self.route = Route(model="m", branch=branch, digest=branch)
        self.at = world.loop.time()
        self.over = False
        self.cancelled = False
        self.paused = False

    def whole(self, body: bytes = b"{}") -> None:
        assert not self.over
        self.over = True
        self.receiver.whole(body, self.route)

    def begin(self, *pieces: bytes) -> None:
        assert not self.over
        self.receiver.begin(self.route)
        for piece in pieces:
            self.data(piece)

    def data(self, piece: bytes) -> None:
        assert not self.over
        self.receiver.data(piece)

    def end(self) -> None:
        assert not self.over
        self.over = True
        self.receiver.end()

    def fail(self, status: int = 502, code: str | None = None, *, retry_after_s: int | None = None) -> None:
        assert not self.over
        self.over = True
        if status >= 500:
            self.receiver.failed(server_error(status, f"{self.branch} failed", code=code, retry_after_s=retry_after_s))
        else:
            self.receiver.failed(Problem(status, f"{self.branch} says no", code=code, retry_after_s=retry_after_s))

    def cancel(self) -> None:
        if not self.over:
            self.over = self.cancelled = True

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


class Client:
    """A receiver that insists on the contract."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.answer = b""
        self.problem: Problem | None = None
        self.by = ""
        self.gone = False
        self.over = False
        self.begun = False
        self.unreadable = False

    def _hears(self, what: str) -> None:
        assert not self.over and not self.gone, f"{what} after {self.heard}"
        self.heard.append(what)

    def whole(self, body: bytes, route: Route) -> None:
        self._hears("whole")
        if self.unreadable:
            raise ValueError("no JSON")
        assert not self.begun
        self.over, self.answer, self.by = True, body, route.branch

    def begin(self, route: Route) -> None:
        self._hears("begin")
        assert not self.begun
        self.begun, self.by = True, route.branch

    def data(self, data: bytes) -> None:
        self._hears("data")
        assert self.begun
        self.answer += data

    def end(self) -> None:
        self._hears("end")
        assert self.begun
        if self.unreadable:
            raise ValueError("no JSON")
        self.over = True

    def failed(self, problem: Problem) -> None:
        self._hears("failed")
        self.over, self.problem = True, problem

    @property
    def status(self) -> int:
        return self.problem.status if self.problem is not None else 200 if self.over else 0


def detectors() -> Detectors:
    """Plain ones: the tests of `pressroom.text` are elsewhere."""

    def language(said: str) -> str:
        return "de" if "Guten Tag" in said else "en"

    def finds(word: str) -> Callable[[str], list[Finding]]:
        return lambda text: [Finding("x", at.start(), at.end()) for at in re.finditer(re.escape(word), text)]

    return Detectors(finds(PERSONAL), finds(SECRET), language)


def branch(name: str, weight: float = 1.0, *, vendor: bool = False, ready: bool = True) -> Branch:
    route = Route(model="m", branch=name, host="h", port=len(name), elsewhere=vendor, ready=ready)
    return Branch(name=name, routes=(route,), weight=weight)


def served(*branches: Branch) -> Served:
    """What the table has for them; for none, one route without a branch."""
    table = RouteTable()
    if branches:
        table.put_branches("m", branches)
    else:
        table.put("m", [Route(model="m")])
    found = table.served("m")
    assert found is not None
    return found


class World:
    """A model with its branches and its policy, and everything that was asked of them."""

    def __init__(
        self, loop: Loop, *branches: Branch, policy: dict[str, Any] | None = None, seed: int = 1, script: Any = None
    ) -> None:
        self.loop = loop
        self.served = served(*branches)
        own = [each.name for each in branches if not each.routes[0].elsewhere]
        self.policy = Policy.parse(policy or {}, [each.name for each in branches], own)
        self.steerings = Steerings(detectors=detectors(), random=random.Random(seed).random, clock=loop.time)
        self.tries: list[Try] = []
        self.requests: list[Request] = []
        #: Called with each try before `start` returns.
        self.script: Callable[[Try], None] | None = script

    def ask(
        self,
        client: Client | None = None,
        *,
        key: str = "",
        team: str = "",
        tag: str = "",
        endpoint: Endpoint = CHAT,
        **fields: Any,
    ) -> Request:
        given: dict[str, Any] = {"model": "m", **fields}
        if endpoint.conversation not in given:
            given[endpoint.conversation] = [{"role": "user", "content": "hello"}]
        asking = Asking(given, endpoint, Caller(key, team), tag, Row("x", 0.0))
        request = Request(self, asking, client or Client())
        self.requests.append(request)
        steering = self.steerings.of("m", self.policy)
        request.asked = steering.steer(asking, self.served, request.client, request.start)
        return request

    @property
    def asked(self) -> list[str]:
        """The branches of all tries but copies, in order."""
        return [each.branch for each in self.tries if not each.shadow]

    @property
    def live(self) -> list[Try]:
        """The tries that have not ended."""
        return [each for each in self.tries if not each.over]

    def marks(self, name: str) -> dict[str, Any]:
        return self.steerings.snapshot()["m"][name]

    def still(self) -> None:
        """Nothing is under way any more: no try, no count, no timer."""
        assert not self.live
        assert self.steerings.under_way == 0
        assert self.steerings.shadows_under_way == 0
        assert self.loop.timers == 0
        assert not any(mark.probing for mark in self.steerings.of("m", self.policy)._marks.values())


class Request:
    def __init__(self, world: World, asking: Asking, client: Client) -> None:
        self.world = world
        self.asking = asking
        self.client = client
        self.asked: Asked | None = None
        self.tries: list[Try] = []

    def start(self, branch: str, receiver: Receiver, *, shadow: bool = False) -> Asked:
        made = Try(self.world, branch, receiver, shadow=shadow)
        self.world.tries.append(made)
        self.tries.append(made)
        if self.world.script is not None:
            self.world.script(made)
        return made

    def leave(self) -> None:
        self.client.gone = True
        assert self.asked is not None
        self.asked.cancel()


def stream(*pieces: str) -> Sequence[bytes]:
    """A stream that says these."""
    events = [b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % piece.encode() for piece in pieces]
    return [*events, b"data: [DONE]\n\n"]


def answer(text: str) -> bytes:
    """A whole answer that says this."""
    return b'{"choices":[{"index":0,"message":{"role":"assistant","content":"%b"}}]}' % text.encode()
