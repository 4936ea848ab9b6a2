"""Budgets in the database, and `press budget`."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from pressroom.cli.budget import budget as command
from pressroom.gateway.money import Accounts, Budget, BudgetError, Budgets, Period, Scope, Spending, Unit, labels_of
from pressroom.kernel import NotFoundError, Workspace
from pressroom.kernel.errors import PressroomError

from .clocks import NOON, budget


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def workspace(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Workspace]:
    environ = {}
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
        environ["PRESSROOM_DATABASE"] = url.replace("postgresql:", "postgresql+psycopg:")
    with Workspace.open(tmp_path, environ=environ) as opened:
        yield opened


def make_spending(workspace: Workspace, *rows: Spending) -> None:
    """The table that the ledger keeps."""
    metadata = sa.MetaData()
    table = sa.Table(
        "spending",
        metadata,
        *(sa.Column(name, sa.String(200), primary_key=True) for name in ("scope", "name", "period")),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("tokens", "nano_usd")),
    )
    with workspace.database.begin() as connection:
        metadata.create_all(connection)
        for row in rows:
            names = ("scope", "name", "period", "tokens", "nano_usd")
            connection.execute(table.insert().values({name: getattr(row, name) for name in names}))


def test_set_list_change_remove(workspace: Workspace) -> None:
    budgets = Budgets(workspace)
    assert budgets.list() == []
    seen = budgets.changes()
    five, ten = budget("key:alice", "5usd/day"), budget("key:alice", "10usd/day")
    tokens, total = budget("key:alice", "2M tokens/day"), budget("all", "1000000000usd")
    assert budgets.set(five) is None
    assert budgets.set(ten) == five
    assert budgets.set(tokens) is budgets.set(total) is None
    assert budgets.list() == [total, tokens, ten]
    assert budgets.changes() == seen + 4
    assert Budgets(workspace).remove(Scope.KEY, "alice", unit=Unit.USD, period=Period.DAY) == [ten]
    with pytest.raises(NotFoundError) as error:
        budgets.remove(Scope.KEY, "alice", unit=Unit.USD, period=Period.DAY)
    assert "2000000tokens/day" in error.value.hint
    assert budgets.remove(Scope.KEY, "alice") == [tokens]
    with pytest.raises(NotFoundError):
        budgets.remove(Scope.TEAM, "alice")
    assert budgets.list() == [total]
    # What failed changed nothing, and what succeeded was counted.
    assert budgets.changes() == seen + 6


def test_amounts_that_do_not_fit_are_refused(workspace: Workspace) -> None:
    for amount in (-1, 10**18 + 1):
        wrong = Budget(scope=Scope.ALL, name="", unit=Unit.USD, period=Period.DAY, amount=amount)
        with pytest.raises(BudgetError):
            Budgets(workspace).set(wrong)
    assert Budgets(workspace).changes() == 0


def test_two_at_once_lose_no_change(workspace: Workspace) -> None:
    Budgets(workspace)

    def write(n: int) -> None:
        for k in range(10):
            Budgets(workspace).set(budget("key:alice", f"{n * 10 + k}usd/day"))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Budgets(workspace).changes() == 40
    assert len(Budgets(workspace).list()) == 1


def test_spending_is_read_where_the_ledger_has_written_it(workspace: Workspace) -> None:
    budgets = Budgets(workspace)
    assert budgets.spending() == [] and budgets.spent(labels_of(NOON)) == {}
    days = [labels_of(NOON - n * 86400)[0] for n in range(100)]
    rows = [Spending("all", "", day, n, 10**17 + n) for n, day in enumerate(days)]
    rows += [Spending("all", "", "total", 7, 8), Spending("key", "alice", "2020-01", 9, 10)]
    make_spending(workspace, *rows)
    assert set(budgets.spending()) == set(rows[:70] + rows[-2:])
    assert budgets.spent(labels_of(NOON)) == {("all", "", days[0]): (0, 10**17), ("all", "", "total"): (7, 8)}
    accounts = Accounts(clock=lambda: NOON)
    accounts.load(budgets.spending())
    assert accounts.spent(Scope.ALL, "", days[69], Unit.TOKENS) == 69


# The command.


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def press(*arguments: str) -> str:
    found = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return found.stdout


def read(*arguments: str) -> Any:
    return json.loads(press(*arguments, "--json"))


def test_the_command(here: Path) -> None:
    assert "No budgets" in press()
    assert press("set", "team:research", "2M", "tokens/month") == "budget of team research, 2,000,000 tokens a month\n"
    assert "(it was 2,000,000 tokens/month)" in press("set", "team:research", "3M tokens/month")
    set_ = read("set", "all", "0.50usd/day")
    assert (set_["amount"], set_["left"], set_["before"]) == (500_000_000, 500_000_000, None)
    with Workspace.open() as workspace:
        day, month, _ = labels_of(time.time())
        make_spending(
            workspace, Spending("all", "", day, 9, 125_000_000), Spending("team", "research", month, 4_000_000, 1)
        )
    listed = read("list")
    assert [(each["scope"], each["spent"], each["left"], each["share"]) for each in listed] == [
        ("all", 125_000_000, 375_000_000, 0.25),
        ("team", 4_000_000, 0, round(4 / 3, 6)),
    ]
    text = press()
    assert "█████···············  25%".replace("  ", " ") in text
    assert "████████████████████ 133%" in text
    assert press("remove", "all", "usd/day") == "removed the budget of all, 0.50 USD a day\n"
    assert [each["scope"] for each in read("remove", "team:research")] == ["team"]
    assert read() == []


def test_a_budget_for_nobody_is_kept_and_doubted(here: Path) -> None:
    assert "no key called 'alcie'" in read("set", "key:alcie", "5usd")["note"]
    assert "no deployment called 'chat'" in read("set", "deployment:chat", "0usd")["note"]
    assert len(read("list")) == 2
    press("list")


@pytest.mark.parametrize(
    "arguments",
    [
        ("set", "key:alice", "-5usd"),
        ("set", "key:alice", "nan"),
        ("set", "alice", "5usd"),
        ("remove", "key:alice"),
        ("remove", "key:alice", "day"),
    ],
)
def test_bad_input_is_an_error_that_says_what_to_do(here: Path, arguments: tuple[str, ...]) -> None:
    with pytest.raises(PressroomError) as error:
        press(*arguments)
    assert error.value.hint
    assert read() == []
