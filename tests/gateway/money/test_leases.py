"""One owner, several workers: whatever is lost, late or killed, nothing is overspent and nothing stays held."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pressroom.gateway.admission import Caller, Limits, Refused
from pressroom.gateway.money import Accounts, Budget, Hold, Pending, Scope, Unit
from pressroom.gateway.money.leases import DAYS_KEPT, Spent
from pressroom.gateway.money.owner import Channel, Owner
from pressroom.gateway.money.worker import Worker

from .clocks import Clocks, budget, refused

LEASE_S = 5.0


class Ledger:
    """The rows of all sessions: they survive whatever happens to processes."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, str, int, int, int]] = []

    def sums(self, session: str | None = None) -> Iterable[Spent]:
        found: dict[Any, list[int]] = {}
        for whose, *line, tokens, nano_usd in self.rows:
            if session in (None, whose):
                both = found.setdefault(tuple(line), [0, 0])
                both[0] += tokens
                both[1] += nano_usd
        return [Spent(line, *both) for line, both in found.items()]


class Process:
    """A worker's process: its treasury, its connection, and the requests that run in it."""

    def __init__(self, house: House, session: str) -> None:
        self.house = house
        self.session = session
        self.worker = Worker(
            session, pid=len(house.processes) + 1, clock=house.clocks.clock, monotonic=house.clocks.monotonic
        )
        self.alive = True
        self.channel: Channel | None = None
        self.up: deque[Any] = deque()
        self.down: deque[Any] = deque()
        self.running: list[tuple[Hold, Caller, str]] = []
        self.refusals: list[Refused] = []
        self.waiting = 0

    def connect(self) -> None:
        self.up.clear()
        self.down.clear()
        assert self.house.owner is not None
        self.channel = self.house.owner.open(self.down.append)
        self.worker.opened(self.up.append)

    def disconnect(self) -> None:
        channel, self.channel = self.channel, None
        self.up.clear()
        self.down.clear()
        if channel is not None and self.house.owner is not None:
            channel.close()
        if self.alive:
            self.worker.closed()

    def ask(self, caller: Caller, model: str, tokens: int, nano_usd: int) -> None:
        found = self.worker.admit(caller, model, tokens=tokens, nano_usd=nano_usd, request_id="r")

        def then(found: Hold | Refused) -> None:
            if isinstance(found, Hold):
                self.running.append((found, caller, model))
            else:
                self.refusals.append(found)

        def later(found: Hold | Refused) -> None:
            self.waiting -= 1
            then(found)

        if isinstance(found, Pending):
            self.waiting += 1
            found.wait(later)
        else:
            then(found)

    def settle(self, at: int, share: float) -> None:
        hold, caller, model = self.running.pop(at)
        tokens, nano_usd = int(hold.tokens * share), int(hold.nano_usd * share)
        day = int(self.house.clocks.wall // 86400)
        self.house.ledger.rows.append((self.session, caller.key, caller.team, model, day, tokens, nano_usd))
        hold.settle(tokens=tokens, nano_usd=nano_usd)


class House:
    """The owner's process, the workers', and messages that are under way between them."""

    def __init__(self, *budgets: Budget, workers: int = 3) -> None:
        self.clocks = Clocks()
        self.ledger = Ledger()
        self.budgets = budgets
        self.processes: list[Process] = []
        self.owner: Owner | None = None
        self.start_owner()
        for _ in range(workers):
            self.start_worker()
        self.deliver()

    @property
    def alive(self) -> list[Process]:
        return [process for process in self.processes if process.alive]

    def start_owner(self) -> None:
        accounts = Accounts(clock=self.clocks.clock, monotonic=self.clocks.monotonic)
        for spent in self.ledger.sums():
            accounts.spend(*spent.line, tokens=spent.tokens, nano_usd=spent.nano_usd)
        expected = {p.session: (p.worker.pid, self.ledger.sums(p.session)) for p in self.alive}
        self.owner = Owner(
            accounts,
            budgets=self.budgets,
            settled=self.ledger.sums,
            alive=lambda pid: self.processes[pid - 1].alive,
            expected=expected,
            lease_s=LEASE_S,
            monotonic=self.clocks.monotonic,
        )
        for process in self.alive:
            process.connect()

    def kill_owner(self) -> None:
        self.owner = None
        for process in self.processes:
            process.disconnect()

    def start_worker(self) -> Process:
        process = Process(self, f"worker-{len(self.processes) + 1}")
        self.processes.append(process)
        if self.owner is not None:
            process.connect()
        return process

    def kill(self, process: Process) -> None:
        process.alive = False
        process.disconnect()
        process.running.clear()

    def deliver(self, most: int = 10**9, pick: Callable[[list[Any]], Any] = lambda found: found[0]) -> None:
        """Messages arrive, in order on each connection."""
        while most:
            ready = [(process, queue) for process in self.processes for queue in (process.up, process.down) if queue]
            if not ready:
                return
            process, queue = pick(ready)
            message = queue.popleft()
            if queue is process.up:
                assert process.channel is not None
                process.channel.receive(message)
            else:
                process.worker.receive(message)
            most -= 1

    def time_passes(self, seconds: float, *, deliver: bool = True) -> None:
        self.clocks.on(seconds)
        for process in self.alive:
            process.worker.beat()
        if deliver:
            self.deliver()
        if self.owner is not None:
            self.owner.tick()
        if deliver:
            self.deliver()

    def quiet(self) -> None:
        """Nothing comes, and all that is idle is given back."""
        for _ in range(20):
            self.time_passes(0.5)

    def spent(self, whose: Budget) -> int:
        """By the rows, which are the truth."""
        at = {Scope.KEY: 1, Scope.TEAM: 2, Scope.DEPLOYMENT: 3}
        return sum(
            row[5] if whose.unit is Unit.TOKENS else row[6]
            for row in self.ledger.rows
            if whose.scope is Scope.ALL or row[at[whose.scope]] == whose.name
        )

    def held(self, whose: Budget) -> int:
        """By the requests that run in processes that live."""
        return sum(
            hold.tokens if whose.unit is Unit.TOKENS else hold.nano_usd
            for process in self.alive
            for hold, caller, model in process.running
            if whose.scope is Scope.ALL
            or whose.name == {Scope.KEY: caller.key, Scope.TEAM: caller.team, Scope.DEPLOYMENT: model}[whose.scope]
        )


def red(key: str = "alice", **limits: int) -> Caller:
    return Caller(key, "red", limits=Limits(**limits))


def test_200_at_once_at_four_workers_on_a_budget_for_50() -> None:
    whole = budget("team:red", "50 tokens/month")
    house = House(whole, workers=4)
    for n in range(200):
        house.processes[n % 4].ask(red(f"key{n % 5}"), "chat", 1, 0)
    house.deliver()
    assert sum(len(process.running) for process in house.processes) == 50
    assert [process.waiting for process in house.processes] == [0] * 4
    problem = house.processes[0].refusals[-1].problem
    assert (problem.status, problem.code, problem.retry_after_s) == (429, "insufficient_quota", 1)
    assert "50 tokens a month" in problem.message
    for process in house.processes:
        while process.running:
            process.settle(0, 1.0)
    house.quiet()
    assert house.spent(whole) == 50
    assert house.owner is not None
    assert [(pot.left, pot.held) for pot in house.owner.accounts.pots()] == [(0, 0)]


def test_what_one_worker_does_not_use_another_can() -> None:
    house = House(budget("all", "100 tokens"), workers=3)
    first, second, _ = house.processes
    first.ask(red(), "chat", 5, 0)
    house.deliver()
    first.settle(0, 1.0)
    # The first has more than it uses; all that is left of the 100 is asked for at the second.
    second.ask(red(), "chat", 95, 0)
    house.deliver()
    assert len(second.running) == 1
    second.ask(red(), "chat", 1, 0)
    house.deliver()
    assert len(second.refusals) == 1


def test_callers_without_limits_and_budgets_need_nobody() -> None:
    house = House(budget("key:bob", "5 tokens"))
    process = house.processes[0]
    house.kill_owner()
    process.ask(red(), "chat", 10**9, 10**9)
    assert len(process.running) == 1 and not process.waiting
    process.ask(Caller("bob"), "chat", 1, 0)
    found = process.refusals[0]
    assert (found.short, found.problem.status, found.problem.retry_after_s) == ("budget", 503, 1)
    process.settle(0, 0.5)
    house.start_owner()
    house.deliver()
    house.quiet()
    assert house.owner is not None
    assert house.owner.accounts.spent(Scope.ALL, "", "total", Unit.TOKENS) == 5 * 10**8


def test_a_worker_goes_on_within_its_leases_until_they_end() -> None:
    house = House(budget("all", "1000 tokens"))
    process = house.processes[0]
    process.ask(red(), "chat", 10, 0)
    house.deliver()
    house.kill_owner()
    process.ask(red(), "chat", 10, 0)
    assert len(process.running) == 2
    house.clocks.on(LEASE_S - 1)
    process.ask(red(), "chat", 10, 0)
    assert len(process.running) == 3
    house.clocks.on(1)
    process.ask(red(), "chat", 10, 0)
    assert len(process.running) == 3 and len(process.refusals) == 1
    process.settle(0, 1.0)
    house.start_owner()
    house.time_passes(0.1)
    assert house.owner is not None
    assert house.owner.leases["worker-1"] == {("pot", "all", "", "tokens", "total", "total"): 20}
    process.ask(red(), "chat", 970, 0)
    house.deliver()
    assert len(process.running) == 3
    process.ask(red(), "chat", 1, 0)
    house.deliver()
    assert len(process.refusals) == 2


def test_a_new_owner_grants_nothing_until_it_knows_what_is_leased() -> None:
    house = House(budget("all", "100 tokens"), workers=2)
    first, second = house.processes
    first.ask(red(), "chat", 60, 0)
    house.deliver()
    house.kill_owner()
    house.start_owner()
    first.up.clear()  # it hangs before it says anything
    second.ask(red(), "chat", 60, 0)
    house.deliver()
    assert second.waiting == 1 and not second.running
    house.kill(first)
    house.time_passes(0.5)
    assert second.waiting == 0 and len(second.running) == 1


def test_grants_of_an_owner_before_are_not_taken_for_grants_of_this_one() -> None:
    house = House(budget("all", "100 tokens"), workers=2)
    first, second = house.processes
    for _ in range(5):
        first.ask(red(), "chat", 5, 0)
        house.deliver()
    assert len(first.running) == 5  # of two grants
    house.kill_owner()
    house.start_owner()
    house.deliver()
    first.ask(red(), "chat", 30, 0)
    assert first.channel is not None and first.waiting == 1
    first.channel.receive(first.up.popleft())
    # The first grant of the new owner is under way; meanwhile the worker reports, and has seen none of this owner's.
    first.settle(0, 1.0)
    first.worker.beat()
    while first.up:
        first.channel.receive(first.up.popleft())
    second.ask(red(), "chat", 60, 0)
    house.deliver()
    assert len(first.running) == 5 and not second.running
    second.ask(red(), "chat", 45, 0)
    house.deliver()
    assert len(second.running) == 1
    assert house.spent(house.budgets[0]) + house.held(house.budgets[0]) == 100


def test_a_worker_that_was_killed_gives_back_what_its_rows_do_not_say() -> None:
    house = House(budget("all", "100 tokens"), workers=2)
    first, second = house.processes
    for _ in range(4):
        first.ask(red(), "chat", 20, 0)
    house.deliver()
    first.settle(0, 0.5)
    house.kill(first)
    second.ask(red(), "chat", 90, 0)
    house.time_passes(1)
    second.ask(red(), "chat", 91, 0)
    house.time_passes(1)
    assert not second.running
    second.ask(red(), "chat", 90, 0)
    house.deliver()
    assert len(second.running) == 1


def test_one_that_hangs_keeps_what_it_has() -> None:
    house = House(budget("all", "100 tokens"), workers=2)
    first, second = house.processes
    first.ask(red(), "chat", 60, 0)
    house.deliver()
    assert house.owner is not None
    for _ in range(100):
        house.clocks.on(1)
        second.worker.beat()
        house.deliver()
        house.owner.tick()
    second.ask(red(), "chat", 60, 0)
    for _ in range(5):
        house.clocks.on(1)
        second.worker.beat()
        house.deliver()
        house.owner.tick()
    assert not second.running and len(second.refusals) == 1
    first.settle(0, 1.0)
    house.time_passes(1)
    second.ask(red(), "chat", 40, 0)
    house.deliver()
    assert len(second.running) == 1


def test_a_budget_that_is_set_while_requests_run() -> None:
    house = House(workers=2)
    first, second = house.processes
    first.ask(red(), "chat", 60, 0)
    assert house.owner is not None
    house.budgets = (budget("team:red", "100 tokens/day"),)
    house.owner.renew(house.budgets)
    house.deliver()
    second.ask(red(), "chat", 41, 0)
    house.deliver()
    assert not second.running
    second.ask(red(), "chat", 40, 0)
    house.deliver()
    assert len(second.running) == 1
    house.owner.renew([])
    house.deliver()
    second.ask(red(), "chat", 10**6, 0)
    assert len(second.running) == 2


def test_limits_of_a_key_hold_over_all_workers() -> None:
    house = House(workers=3)
    callers = [red(requests_per_minute=12, parallel=5) for _ in house.processes]
    for _ in range(10):
        for process, caller in zip(house.processes, callers, strict=True):
            process.ask(caller, "chat", 1, 0)
        house.deliver()
    assert sum(len(process.running) for process in house.processes) == 5
    assert {refused.short for process in house.processes for refused in process.refusals} == {"parallel"}
    for process in house.processes:
        while process.running:
            process.settle(0, 1.0)
    for _ in range(10):
        for process, caller in zip(house.processes, callers, strict=True):
            process.ask(caller, "chat", 1, 0)
            house.deliver()
            while process.running:
                process.settle(0, 1.0)
    assert len(house.ledger.rows) == 12
    last = refused(house.processes[0].refusals[-1])
    assert (last.short, last.problem.retry_after_s) == ("requests", 5)
    house.quiet()
    house.time_passes(55)
    for process, caller in zip(house.processes, callers, strict=True):
        process.ask(caller, "chat", 1, 0)
    house.deliver()
    assert sum(len(process.running) for process in house.processes) == 3


def test_tokens_a_minute_over_all_workers() -> None:
    house = House(workers=2)
    first, second = house.processes
    callers = [red(tokens_per_minute=1000), red(tokens_per_minute=1000)]
    first.ask(callers[0], "chat", 600, 0)
    house.deliver()
    second.ask(callers[1], "chat", 600, 0)
    house.deliver()
    assert second.refusals[0].problem.retry_after_s == 12
    first.settle(0, 0.0)
    second.ask(callers[1], "chat", 600, 0)
    house.deliver()
    assert len(second.running) == 1
    second.ask(callers[1], "chat", 1001, 0)
    house.deliver()
    assert "this request alone" in second.refusals[-1].problem.message


def test_extending_and_leaving_while_the_owner_is_asked() -> None:
    house = House(budget("all", "100 tokens"), workers=2)
    process = house.processes[0]
    process.ask(red(), "chat", 10, 0)
    house.deliver()
    hold = process.running[0][0]
    found: list[Hold | Refused] = []
    pending = hold.extend(tokens=100, nano_usd=0)
    assert isinstance(pending, Pending)
    pending.wait(found.append)
    house.deliver()
    assert found == [hold] and hold.tokens == 100
    pending = process.worker.admit(red(), "chat", tokens=10, nano_usd=0, request_id="r")
    assert isinstance(pending, Pending)
    pending.wait(found.append)
    pending.cancel()
    process.settle(0, 0.0)
    house.quiet()
    # One that nobody waits for holds nothing.
    assert isinstance(process.worker.admit(red(), "code", tokens=100, nano_usd=0, request_id="r"), Pending)
    house.deliver()
    house.quiet()
    assert found == [hold]
    assert house.owner is not None and house.owner.leases == {"worker-1": {}, "worker-2": {}}


def test_leases_are_asked_for_before_they_run_out() -> None:
    house = House(budget("all", "1000000 tokens"), workers=2)
    process, waited = house.processes[0], 0
    for _ in range(40):
        for _ in range(3):
            process.ask(red(), "chat", 10, 0)
            waited += process.waiting
            house.deliver()
            process.settle(0, 1.0)
        house.time_passes(0.5)
    assert len(house.ledger.rows) == 120
    assert waited < 8


def test_a_worker_that_lives_for_months_is_remembered_for_as_long_as_it_remembers_itself() -> None:
    house = House(budget("key:alice", "100k tokens"), workers=2)
    assert house.owner is not None
    long, short = house.processes
    for day in range(3 * DAYS_KEPT):
        long.ask(red(), "chat", 10, 0)
        if not day:
            short.ask(red(), "chat", 7, 0)
        house.deliver()
        while long.running:
            long.settle(0, 1.0)
        while short.running:
            short.settle(0, 1.0)
        for _ in range(3):
            house.time_passes(1.0)
        house.clocks.on(86400 - 3)
    lines = [len(house.owner._leases[process.session].lines) for process in (long, short)]
    assert lines == [DAYS_KEPT + 1, 1]
    spent = house.owner.accounts.spent
    assert spent(Scope.KEY, "alice", "total", Unit.TOKENS) == 3 * DAYS_KEPT * 10 + 7
    # It connects once more and says all it knows, and then its rows are read, from the first day on: nothing is new.
    long.disconnect()
    long.connect()
    house.deliver()
    assert spent(Scope.KEY, "alice", "total", Unit.TOKENS) == 3 * DAYS_KEPT * 10 + 7
    for process in (long, short):
        house.kill(process)
    house.time_passes(1.0)
    assert not house.owner.leases
    assert spent(Scope.KEY, "alice", "total", Unit.TOKENS) == 3 * DAYS_KEPT * 10 + 7


@pytest.mark.parametrize("seed", range(6))
def test_midnight_at_workers(seed: int) -> None:
    random.seed(seed)
    house = House(budget("key:alice", "100 tokens/day"), workers=2)
    house.clocks.wall += 12 * 3600 - 60
    spent = {0: 0, 1: 0}
    first = int(house.clocks.wall // 86400)
    for _ in range(60):
        house.clocks.on(2)
        process = random.choice(house.processes)
        process.ask(red(), "chat", random.randrange(1, 30), 0)
        house.deliver()
        if process.running and random.random() < 0.8:
            hold, *_ = process.running.pop()
            day = hold.line.day - first  # type: ignore[attr-defined]
            spent[day] += hold.tokens
            hold.settle(tokens=hold.tokens, nano_usd=0)
        if random.random() < 0.3:
            house.time_passes(0.5)
    for process in house.processes:
        for hold, *_ in process.running:
            hold.settle(tokens=0, nano_usd=0)
    house.quiet()
    assert 60 < spent[0] <= 100 and 60 < spent[1] <= 100
    assert house.owner is not None and house.owner.leases == {"worker-1": {}, "worker-2": {}}
    for day, tokens in spent.items():
        label = ("2026-11-21", "2026-11-22")[day]
        assert house.owner.accounts.spent(Scope.KEY, "alice", label, Unit.TOKENS) == tokens


BUDGETS = (
    budget("all", "400 tokens"),
    budget("team:red", "0.000000300usd/month"),
    budget("key:alice", "150 tokens/month"),
)


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_random_lives_and_deaths(seed: int) -> None:
    live_and_die(random.Random(seed))


def live_and_die(chance: random.Random) -> None:
    """Requests, messages, kills and restarts in an order that chance decides on."""
    house = House(*BUDGETS, workers=2)
    callers = {key: {} for key in ("alice", "bob", "carol")}  # type: dict[str, dict[str, Caller]]

    def caller(process: Process) -> Caller:
        key = chance.choice(list(callers))
        limits = Limits(parallel=3, tokens_per_minute=500) if key == "carol" else Limits()
        return callers[key].setdefault(process.session, Caller(key, "" if key == "bob" else "red", limits=limits))

    for _ in range(chance.randrange(20, 200)):
        what = chance.random()
        alive = house.alive
        if what < 0.5 and alive:
            process = chance.choice(alive)
            process.ask(caller(process), chance.choice(["chat", "code"]), chance.randrange(60), chance.randrange(60))
        elif what < 0.6 and alive:
            process = chance.choice(alive)
            if process.running:
                process.settle(chance.randrange(len(process.running)), chance.choice([0.0, 0.3, 1.0]))
        elif what < 0.8:
            house.deliver(chance.randrange(6), chance.choice)
        elif what < 0.9:
            house.time_passes(chance.choice([0.2, 0.5, 1.0, 3.0]), deliver=chance.random() < 0.5)
        elif what < 0.93 and alive:
            house.kill(chance.choice(alive))
        elif what < 0.95 and len(alive) < 4:
            house.start_worker()
        elif what < 0.97 and alive and house.owner is not None:
            process = chance.choice(alive)
            process.disconnect()
            process.connect()
        elif house.owner is not None:
            house.kill_owner()
        else:
            house.start_owner()
        for whole in BUDGETS:
            assert house.spent(whole) + house.held(whole) <= whole.amount
    if house.owner is None:
        house.start_owner()
    for process in house.alive:
        while process.running:
            process.settle(0, chance.choice([0.0, 1.0]))
    house.quiet()
    for process in house.alive:
        assert not process.waiting
        while process.running:
            process.settle(0, 0.0)
    house.quiet()
    # Nothing is stuck, and the owner knows to the token what the rows say.
    assert house.owner is not None
    assert all(not any(amounts.values()) for amounts in house.owner.leases.values())
    for whole in BUDGETS:
        assert house.spent(whole) <= whole.amount
        label = "total" if whole.period == "total" else "2026-11"
        accounts = house.owner.accounts
        assert accounts.spent(whole.scope, whole.name, label, whole.unit) == house.spent(whole)
    for pot in house.owner.accounts.pots():
        assert pot.held == 0 and pot.left == pot.budget.amount - house.spent(pot.budget)
    assert house.owner.accounts.running("carol") == 0
    # What is left can be had, all of it, at any worker.
    process = house.start_worker()
    house.deliver()
    left = min(BUDGETS[0].amount - house.spent(BUDGETS[0]), BUDGETS[2].amount - house.spent(BUDGETS[2]))
    process.ask(Caller("alice", "blue"), "chat", left, 0)
    house.deliver()
    assert len(process.running) == 1
