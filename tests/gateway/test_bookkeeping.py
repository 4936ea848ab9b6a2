"""What people change with `press` while a server runs acts within a moment; what was spent before counts."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pressroom.cost import Price, Prices
from pressroom.deploy import Deployments, Phase, Server, apply, read_deployment, wait_until
from pressroom.gateway.ledger import Rows, correct
from pressroom.gateway.money import Budget, Budgets, Period, Scope, Unit
from pressroom.kernel import Workspace

from .engines_and_clients import until

MILLION = 10**6
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}).encode()
# What one comes to: the echo counts words.
TOKENS = 1 + 5


def budget(amount: int, unit: Unit = Unit.TOKENS) -> Budget:
    return Budget(scope=Scope.ALL, name="", unit=unit, period=Period.TOTAL, amount=amount)


class Running:
    """A server over an echo, in this process."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace.open(root)
        self.budgets = Budgets(self.workspace)
        self.server = Server(self.workspace, port=0)
        self.server.start()
        deployments = Deployments(self.workspace)
        wish = deployments.put("m", ref="m:1", digest="", engine="echo", options={"tokens": 5})
        wait_until(deployments, wish, Phase.READY, timeout_s=60)

    def ask(self) -> int:
        request = urllib.request.Request(
            f"{self.server.url}/v1/chat/completions", BODY, {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return int(error.code)

    def close(self) -> None:
        self.server.stop()
        self.workspace.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    yield made
    made.close()


def costs(running: Running) -> dict[str, int]:
    """What each request cost, newest first."""
    bookkeeping = running.server._bookkeeping
    assert bookkeeping is not None and bookkeeping.ledger.flush()
    return {row.id: row.nano_usd for row in Rows(running.workspace).list(limit=10_000)}


def test_a_budget_acts_while_the_server_runs(running: Running) -> None:
    assert running.ask() == 200
    running.budgets.set(budget(3))  # what was spent before counts for it
    until(lambda: running.ask() == 429)
    running.budgets.set(budget(MILLION))
    until(lambda: running.ask() == 200)
    running.budgets.remove(Scope.ALL, "")
    assert running.ask() == 200


def test_a_price_acts_while_the_server_runs(running: Running) -> None:
    Prices(running.workspace).set("own/m", Price.parse({"prompt": 1, "completion": 2}))
    running.budgets.set(budget(1, Unit.USD))
    until(lambda: running.ask() == 429)


def test_a_wrong_price_that_is_put_right_gives_the_budget_back(running: Running) -> None:
    Prices(running.workspace).set("own/m", Price.parse({"prompt": 1000, "completion": 1000}))
    until(lambda: running.ask() and any(costs(running).values()))
    Prices(running.workspace).set("own/m", Price.parse({"prompt": "0.001", "completion": "0.001"}))
    until(lambda: running.ask() and next(iter(costs(running).values())) < 1_000)
    spent = {id: nano for id, nano in costs(running).items() if nano > 1_000}
    running.budgets.set(budget(sum(spent.values()) // 2, Unit.USD))
    until(lambda: running.ask() == 429)
    correct(running.workspace, dict.fromkeys(spent, 0))
    until(lambda: running.ask() == 200)


def test_what_was_spent_before_a_start_counts_after_it(tmp_path: Path) -> None:
    first = Running(tmp_path)
    assert [first.ask() for _ in range(5)] == [200] * 5
    first.budgets.set(budget(6 * TOKENS - 1))
    first.close()
    again = Running(tmp_path)
    try:
        assert again.ask() == 429
        again.budgets.set(budget(MILLION))
        until(lambda: again.ask() == 200)
    finally:
        again.close()


def test_a_new_price_in_a_file_acts_and_restarts_nothing(running: Running, tmp_path: Path) -> None:
    file = tmp_path / "m.toml"
    engines = []
    for dollars in (100, 500):
        file.write_text(
            'name = "m"\n[[route]]\nref = "m:1"\nengine = "echo"\noptions = { tokens = 5 }\n'
            f"price = {{ prompt = {dollars}, completion = {dollars} }}\n",
            encoding="utf-8",
        )
        wish = apply(running.workspace, read_deployment(running.workspace, file))
        seen = wait_until(Deployments(running.workspace), wish, Phase.READY, timeout_s=60)
        engines.append(seen.pid)
        expected = TOKENS * dollars * 1_000
        until(lambda expected=expected: running.ask() and next(iter(costs(running).values())) == expected)
    assert engines[0] == engines[1]
