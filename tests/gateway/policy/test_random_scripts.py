"""Whatever branches do and whenever clients leave: each client hears one end, nothing stays under way, and no vendor
sees what must stay."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from .scripted import PERSONAL, SECRET, Loop, Try, World, branch, run

NAMES = ("own", "second", "vendor")
STATUSES = (400, 401, 404, 408, 409, 429, 500, 502, 503, 504)
CODES = (None, None, "vendor_refused_key", "unsupported_parameter", "insufficient_quota")

policies = st.fixed_dictionaries(
    {},
    optional={
        "fallback": st.fixed_dictionaries({"order": st.lists(st.sampled_from(NAMES), unique=True)}),
        "retry": st.fixed_dictionaries({"attempts": st.integers(0, 3), "backoff_s": st.sampled_from([0, 0.1, 5])}),
        "breaker": st.fixed_dictionaries({"failures": st.integers(0, 3), "pause_s": st.sampled_from([0.5, 5])}),
        "hedge": st.fixed_dictionaries({"after_s": st.sampled_from([0.1, 1])}),
        "limits": st.sampled_from([{"first_token_s": 1}, {"total_s": 3}, {"first_token_s": 0.5, "total_s": 2}]),
        "shadow": st.fixed_dictionaries({"branch": st.sampled_from(NAMES), "share": st.just(1)}),
        "split": st.sampled_from([{"sticky": True}, {"key:k": "vendor"}]),
        "rule": st.just([{"when": {"longer_than": 0}, "prefer": "vendor"}]),
    },
)
texts = st.sampled_from(["hello", f"for {PERSONAL}", f"with {SECRET}"])
steps = st.one_of(
    st.tuples(st.just("ask"), texts, st.booleans()),
    st.tuples(st.just("begin"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("data"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("end"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("fail"), st.integers(0, 5), st.integers(0, len(STATUSES) - 1)),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.3, 1.0, 4.0]), st.just(0)),
    st.tuples(st.just("leave"), st.integers(0, 5), st.just(0)),
    st.tuples(st.just("slow"), st.integers(0, 5), st.booleans()),
    # What the next branches do before `start` returns.
    st.tuples(st.just("at once"), st.sampled_from(["nothing", "fail", "whole", "begin"]), st.just(0)),
)


class Branches:
    """Takes the steps that branches take; keeps to the contract of a Receiver."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.begun: set[int] = set()
        self.at_once = "nothing"
        world.script = self.started

    def started(self, tried: Try) -> None:
        what, self.at_once = self.at_once, "nothing"
        if what == "fail":
            tried.fail(503)
        elif what == "whole":
            tried.whole(b"{}")
        elif what == "begin":
            self.begin(tried)

    def begin(self, tried: Try) -> None:
        self.begun.add(id(tried))
        tried.begin(b"data: ")

    def step(self, what: str, number: int, status: int) -> None:
        live = self.world.live
        if not live:
            return
        tried = live[number % len(live)]
        begun = id(tried) in self.begun
        if what == "begin" and not begun:
            self.begin(tried)
        elif what == "data" and begun:
            tried.data(b"x")
        elif what == "end":
            tried.end() if begun else tried.whole(b"{}")
        elif what == "fail":
            tried.fail(STATUSES[status], CODES[number % len(CODES)] if not begun else None)


@given(
    policies,
    st.lists(steps, min_size=3, max_size=40),
    st.tuples(*[st.sampled_from([0.0, 1.0, 5.0])] * 3),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.integers(0, 9),
)
@settings(max_examples=400, deadline=None)
def test_any_script(policy: Any, script: Any, weights: Any, ready: Any, seed: int) -> None:
    async def test(loop: Loop) -> None:
        made = [
            branch(name, weights[number], vendor=name == "vendor", ready=ready[number])
            for number, name in enumerate(NAMES)
        ]
        world = World(loop, *made, policy=policy, seed=seed)
        branches = Branches(world)
        private: set[int] = set()

        def step(what: str, one: Any, other: Any) -> None:
            if what == "ask":
                before = len(world.requests)
                request = world.ask(messages=[{"role": "user", "content": one}], stream=other, key="k")
                assert len(world.requests) == before + 1
                if one != "hello":
                    private.add(id(request))
                    assert request.asking.own_only
            elif what == "at once":
                branches.at_once = one
            elif what in ("leave", "slow"):
                running = [each for each in world.requests if not each.client.over and not each.client.gone]
                if running:
                    request = running[one % len(running)]
                    assert request.asked is not None
                    if what == "leave":
                        request.leave()
                    elif other:
                        request.asked.pause()
                    else:
                        request.asked.resume()
            elif what != "wait":
                branches.step(what, one, other)

        for what, one, other in script:
            if what == "wait":
                await asyncio.sleep(one)
            else:
                step(what, one, other)
        for _ in range(200):
            await asyncio.sleep(10)
            if not world.live and not loop.timers:
                break
            for tried in world.live:
                if not tried.over:
                    branches.step("fail", world.live.index(tried), 7)
        for request in world.requests:
            client = request.client
            ends = [what for what in client.heard if what in ("whole", "end", "failed")]
            assert len(ends) == (1 if client.over else 0)
            assert client.over or client.gone
            if id(request) in private:
                assert all(tried.branch != "vendor" for tried in request.tries)
        world.still()

    run(test)
