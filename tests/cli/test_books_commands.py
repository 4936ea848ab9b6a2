"""What `press budget`, `ledger`, `doctor` and `ask` say, where a plain answer would mislead."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pressroom.cli._client import Answer, stream_chat
from pressroom.cli.budget import budget
from pressroom.cli.doctor import doctor
from pressroom.cli.ledger import ledger
from pressroom.deploy import Server
from pressroom.gateway.ledger import Counted, Row, open_ledger
from pressroom.gateway.money import Budgets
from pressroom.kernel import Keys, NotFoundError, Workspace


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    (tmp_path / "pressroom.toml").write_text("[gateway]\nport = 0\ngrpc_port = -1\ndrain_s = 0.2\n")
    monkeypatch.chdir(tmp_path)
    with Workspace.open(tmp_path) as opened:
        yield opened


def press(command: Any, *arguments: str) -> str:
    result = CliRunner().invoke(command, list(arguments), standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


def spend(workspace: Workspace, *, team: str, tokens: int) -> None:
    written = open_ledger(workspace)
    written.start()
    row = Row("req_6f1c", time.time())
    row.model, row.team, row.prompt_tokens, row.counted = "chat", team, tokens, Counted.STATED
    row.total_s = 0.1234567891
    assert written.append(row)
    assert written.flush(30) and written.stop()


def test_a_budget_for_a_team_of_nobody_is_told(workspace: Workspace) -> None:
    assert "no key is of the team 'web' yet" in press(budget, "set", "team:web", "5usd/day")
    Keys(workspace).create("app", ["ask"], team="web")
    assert "note" not in press(budget, "set", "team:web", "6usd/day")
    assert "web" in json.loads(press(budget, "set", "team:wed", "5usd/day", "--json").splitlines()[0])["note"]


def test_budgets_are_summed_once_and_shares_can_be_read(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    spend(workspace, team="web", tokens=240_310)
    for amount in ("100 tokens", "240309 tokens/day", "30M tokens/month"):
        press(budget, "set", "team:web", amount)
    asked = []
    spent = Budgets.spent
    monkeypatch.setattr(Budgets, "spent", lambda *given: asked.append(given) or spent(*given))
    text = press(budget)
    assert "2,403 ×" in text and " 100%" in text and "<1%" in text and len(asked) == 1


def test_a_request_that_has_no_row_may_have_been_refused(workspace: Workspace) -> None:
    spend(workspace, team="", tokens=1)
    assert json.loads(press(ledger, "show", "req_6", "--json"))["total_s"] == 0.123457
    with pytest.raises(NotFoundError) as caught:
        press(ledger, "show", "req_7")
    assert "has no row" in caught.value.hint and "press ledger list" in caught.value.hint
    assert caught.value.facts["asked"] == "req_7"


def test_any_port_is_not_called_free(workspace: Workspace) -> None:
    found = {one["name"]: one["found"] for one in json.loads(press(doctor, "--json"))["findings"]}
    assert "any free port of 127.0.0.1" in found["server"] and ":0" not in found["server"]


def test_an_answer_from_the_cache_has_no_speed(workspace: Workspace) -> None:
    from pressroom.cli.rollout import apply

    route = 'name = "chat"\n[[route]]\nref = "parrot:1"\nengine = "echo"\n[cache]\nexact = true\n'
    (workspace.root / "chat.toml").write_text(route)
    body = {"model": "chat", "temperature": 0, "messages": [{"role": "user", "content": "again"}]}
    with Server(workspace) as server:
        press(apply, "chat.toml")
        answers = [Answer(), Answer()]
        for answer in answers:
            assert "".join(stream_chat(server.url, body, answer))
    first, kept = answers
    assert first.cache == "" and "tokens/s" in first.figures() and first.as_dict()["cache"] is None
    assert kept.text == first.text and kept.as_dict()["cache"] == "exact"
    assert "from the cache (exact)" in kept.figures() and "tokens/s" not in kept.figures()
    assert kept.as_dict()["tokens_per_second"] is None
