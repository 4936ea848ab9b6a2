"""A table and its mirrors: what is there, what runs, and what must not be ended yet."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict
from typing import Any

import orjson
import pytest

from pressroom.cost import Price, Tier
from pressroom.gateway import Branch, Route
from pressroom.gateway.cache.base import CachePolicy, MeaningPolicy
from pressroom.gateway.policy.base import Breaker, Limits, Policy, Retry, Rule, Shadow, When
from pressroom.gateway.routes import Served, lanes_of
from pressroom.gateway.workers._plain import plain_price, plain_served, policy_of, price_of
from pressroom.gateway.workers.mirror import MirrorTable
from pressroom.gateway.workers.shared import Mirrored, SharedTable

PRICE = Price(
    prompt=150,
    completion=600,
    request_nano=7,
    tiers=(Tier(above=1000, prompt=300, completion=600, cached=300),),
    services=(("priority", Price(prompt=1500, completion=6000)),),
    source="somewhere",
    since="2026-01-01",
)
POLICY = Policy(
    split={"key:alice": "new"},
    sticky=True,
    order=("old", "gone"),
    retry=Retry(attempts=3, backoff_s=0.5),
    breaker=Breaker(failures=1),
    hedge_after_s=0.25,
    limits=Limits(total_s=3.5),
    shadow=Shadow(branch="new", share=0.5),
    rules=(Rule(name="rule 1", when=When(secret=True, language=("de", "fr")), only=("own",)),),
    default_rule=False,
)
CACHE = CachePolicy(exact=True, across_keys="team", meaning=MeaningPolicy(deployment="vectors"))


class Line:
    """An owner's table and workers' mirrors, with messages that arrive when the test says so."""

    def __init__(self) -> None:
        self.prices: dict[str, Price | None] = {}
        self.table = SharedTable(pricing=lambda route: self.prices.get(route.model, PRICE))
        self.table.bring = lambda work: work()
        self.down: list[deque[bytes]] = []
        self.up: list[deque[bytes]] = []
        self.mirrors: list[MirrorTable] = []
        self.mirrored: list[Mirrored] = []

    def worker(self) -> MirrorTable:
        down: deque[bytes] = deque()
        up: deque[bytes] = deque()
        self.down.append(down)
        self.up.append(up)
        self.mirrors.append(MirrorTable(lambda message: up.append(orjson.dumps(message))))
        self.mirrored.append(self.table.join(lambda message: down.append(orjson.dumps(message))))
        return self.mirrors[-1]

    def deliver_down(self) -> None:
        for mirror, down in zip(self.mirrors, self.down, strict=True):
            while down:
                mirror.follow(orjson.loads(down.popleft()))

    def deliver_up(self) -> None:
        for mirror, up in zip(self.mirrored, self.up, strict=True):
            while up:
                self.table.said(mirror, orjson.loads(up.popleft()))

    def deliver(self) -> None:
        for mirror in self.mirrors:
            mirror.report()
        self.deliver_down()
        self.deliver_up()


def route(port: int, *, model: str = "m", **more: Any) -> Route:
    return Route(model=model, host="127.0.0.1", port=port, ref="m:1", engine="echo", **more)


def described(served: Served | None) -> Any:
    assert served is not None
    return plain_served(served)


def test_a_mirror_has_what_the_table_has() -> None:
    line = Line()
    line.table.put("a", [route(1, model="a", context=512)])
    mirror = line.worker()
    line.deliver()
    line.table.put(
        "b", [route(1, model="b"), route(2, model="b", elsewhere=True)],
        speeds={"echo": ((1, 20.0), (8, 95.5))}, cache=CACHE,
    )  # fmt: skip
    line.prices["c"] = None
    line.table.put_branches(
        "c",
        [
            Branch(name="old", routes=(route(3, model="c", branch="old"),), weight=0.75),
            Branch(name="new", routes=(route(4, model="c", branch="new"), route(5, model="c", branch="new"))),
        ],
        policy=POLICY,
        cache=CACHE,
    )
    line.deliver()
    for model in "abc":
        assert described(mirror.served(model)) == described(line.table.served(model))
    served = mirror.served("c")
    assert served is not None and served.policy == POLICY and served.cache == CACHE
    assert [lane.price for lane in lanes_of(served)] == [None] * 3
    line.table.remove("a")
    line.deliver()
    assert mirror.served("a") is None and mirror.served("b") is not None


@pytest.mark.parametrize("price", [None, Price(), PRICE, Price(prompt=5, cached=1)])
def test_prices_arrive_exactly(price: Price | None) -> None:
    assert price_of(orjson.loads(orjson.dumps(plain_price(price)))) == price


@pytest.mark.parametrize("policy", [None, Policy(), POLICY])
def test_policies_arrive_exactly(policy: Policy | None) -> None:
    plain = None if policy is None else asdict(policy)
    assert policy_of(orjson.loads(orjson.dumps(plain))) == policy


def test_a_policy_that_stays_is_the_same_object() -> None:
    line = Line()
    mirror = line.worker()
    for port in (1, 2):
        line.table.put("m", [route(port)], policy=POLICY)
        line.deliver()
        served = mirror.served("m")
        assert served is not None
        if port == 1:
            before = served.policy
    assert served.policy is before


def test_a_new_price_reaches_lanes_that_stay() -> None:
    line = Line()
    mirror = line.worker()
    line.table.put("m", [route(1), route(2)])
    line.deliver()
    line.prices["m"] = Price(prompt=9)
    line.table.reprice()
    line.deliver()
    served = mirror.served("m")
    assert served is not None
    assert [lane.price for lane in served.lanes] == [Price(prompt=9)] * 2


def test_an_old_engine_counts_as_busy_until_every_worker_has_the_change_and_nothing_there() -> None:
    line = Line()
    old, new = route(1), route(2)
    line.table.put("m", [old])
    one, two = line.worker(), line.worker()
    line.deliver()
    assert line.table.in_flight(old) == 0
    lane = one.lane("m")
    assert lane is not None and one.enter(lane)
    line.table.put("m", [new])
    # Nothing has come from anybody: both may still send requests there.
    assert line.table.in_flight(old) == 2
    line.deliver_down()
    assert not one.enter(lane)
    assert line.table.in_flight(old) == 2
    line.deliver_up()
    assert line.table.in_flight(old) == 1 and line.table.in_flight(new) == 0
    lane.load.running -= 1
    lane.load.used = 12.5
    line.deliver()
    assert line.table.in_flight(old) == 0
    assert two.lane("m") is not None


def test_a_worker_that_is_gone_is_waited_for_no_more() -> None:
    line = Line()
    line.table.put("m", [route(1)])
    mirror = line.worker()
    line.deliver()
    lane = mirror.lane("m")
    assert lane is not None and mirror.enter(lane)
    lane.load.used = 3.5
    line.deliver()
    line.table.put("m", [route(2)])
    assert line.table.in_flight(route(1)) == 2
    line.table.part(line.mirrored[0])
    assert line.table.in_flight(route(1)) == 0


def test_when_an_engine_was_used_and_a_model_asked_for_last() -> None:
    line = Line()
    line.table.put("m", [route(1)])
    mirror = line.worker()
    line.deliver()
    load = mirror.lane("m")
    assert load is not None
    load.load.used = 77.0
    line.deliver()
    assert line.table.last_used(route(1)) == 77.0
    mirror.ask_for("m", 80.0)
    line.deliver_up()  # a model that may sleep is asked for at once
    assert line.table.asked("m") == 80.0
    line.table.part(line.mirrored[0])
    assert line.table.last_used(route(1)) == 77.0


def test_what_came_of_requests_is_counted_once_for_all() -> None:
    line = Line()
    branches = [
        Branch(name="old", routes=(route(1, branch="old"),)),
        Branch(name="new", routes=(route(2, branch="new"),)),
    ]
    line.table.put_branches("m", branches)
    mirrors = [line.worker(), line.worker()]
    line.deliver()
    for _ in range(3):
        for mirror in mirrors:
            tally = mirror.tally("m", "new")
            assert tally is not None
            tally.answered += 1
            tally.failed += 1
            tally.left += 1
            tally.latest.extend([(0.5, True), (0.25, False)])
        line.deliver()
        line.deliver()
    line.table.put_branches("m", branches[:1])  # what is not told yet is told before the branch goes
    tally = mirrors[0].tally("m", "new")
    assert tally is not None
    whole = line.table.tally("m", "new")
    assert whole is None
    line.table.put_branches("m", branches)
    line.deliver()
    whole = line.table.tally("m", "new")
    assert whole is not None and (whole.answered, whole.failed) == (0, 0)  # it is a new one


def test_tallies_add_up() -> None:
    line = Line()
    line.table.put("m", [route(1)])
    mirrors = [line.worker(), line.worker()]
    line.deliver()
    for turn in range(3):
        for mirror in mirrors:
            tally = mirror.tally("m")
            assert tally is not None
            tally.answered += 1
            tally.failed += turn == 2
            tally.latest.append((0.5, True))
            if turn == 2:
                tally.latest.append((0.25, False))
        line.deliver()
    whole = line.table.tally("m")
    assert whole is not None and (whole.answered, whole.failed, whole.left) == (6, 2, 0)
    assert sorted(whole.latest) == [(0.25, False)] * 2 + [(0.5, True)] * 6
