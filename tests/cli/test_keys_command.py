"""`press keys`: limits, teams and ends as people write them."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pressroom.cli._app import run
from pressroom.cli._client import api_key
from pressroom.kernel import SettingsError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert run([*arguments]) == code, capsys.readouterr()
    return capsys.readouterr().out


def read(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    return json.loads(said(capsys, *arguments, "--json", code=code))


def test_a_key_with_all_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    now = time.time()
    made = read(
        capsys, "keys", "create", "app", "--right", "ask:chat*", "--team", "web", "--rpm", "60", "--tpm", "2.5M",
        "--parallel", "4", "--expires", "30d",
    )  # fmt: skip
    assert made["team"] == "web" and made["rights"] == ["ask:chat*"]
    assert made["limits"] == {"requests_per_minute": 60, "tokens_per_minute": 2_500_000, "parallel": 4}
    assert 30 * 86_400 <= made["expires"] - now < 30 * 86_400 + 60
    secret = made.pop("secret")
    assert read(capsys, "keys") == [made] == read(capsys, "keys", "list")
    shown = said(capsys, "keys", "list")
    assert secret not in shown
    for part in ("TEAM", "web", "60 requests/min, 2,500,000 tokens/min, 4 at once", "ask:chat*"):
        assert part in shown


def test_limits_are_changed_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    made = read(capsys, "keys", "create", "app", "--right", "ask", "--rpm", "60", "--team", "web")
    assert made.pop("secret")
    changed = read(capsys, "keys", "limit", "app", "--tpm", "10k", "--expires", "2099-12-31")
    end = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
    limits = {"requests_per_minute": 60, "tokens_per_minute": 10_000, "parallel": None}
    assert changed == {**made, "limits": limits, "expires": end}
    assert read(capsys, "keys", "list") == [changed]
    assert "10,000 tokens/min" in said(capsys, "keys", "limit", "app", "--rpm", "none", "--team", "none")
    left = read(capsys, "keys", "limit", "app", "--tpm", "none", "--expires", "none")
    assert left == {**made, "team": "", "limits": dict.fromkeys(limits), "expires": None}
    assert "app has no limits" in said(capsys, "keys", "limit", "app", "--parallel", "none")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--rpm", "0"),
        ("--rpm", "-1"),
        ("--rpm", "1.5"),
        ("--rpm", "many"),
        ("--tpm", "10T"),
        ("--tpm", "0.0001k"),
        ("--parallel", ""),
        ("--expires", "0d"),
        ("--expires", "2001-01-01"),
        ("--expires", "2099-13-01"),
        ("--expires", "9999-12-31"),
        ("--expires", "soon"),
        ("--expires", "999999999d"),
    ],
)
def test_what_is_no_limit(capsys: pytest.CaptureFixture[str], option: str, value: str) -> None:
    assert run(["keys", "create", "app", "--right", "ask", option, value]) == 2
    assert repr(value) in capsys.readouterr().err
    assert run(["keys", "limit", "app", option, value]) == 2
    assert "No keys" in said(capsys, "keys")


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("2099-12-31T18:00", datetime(2099, 12, 31, 18, tzinfo=UTC)),
        ("2099-12-31T18:00+02:00", datetime(2099, 12, 31, 16, tzinfo=UTC)),
        ("2099-12-30", datetime(2099, 12, 31, tzinfo=UTC)),
    ],
)
def test_moments(capsys: pytest.CaptureFixture[str], text: str, end: datetime) -> None:
    made = read(capsys, "keys", "create", "app", "--right", "ask", "--expires", text)
    assert made["expires"] == end.timestamp()


def test_a_key_that_is_over_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said(capsys, "keys", "create", "app", "--right", "ask", "--expires", "45min")
    assert "(over)" not in said(capsys, "keys")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3_000)
    assert "(over)" in said(capsys, "keys")


def test_nothing_to_change_and_nobody_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "limit", "app"]) == 2
    assert "--rpm" in capsys.readouterr().err
    said(capsys, "keys", "create", "app", "--right", "ask")
    error = read(capsys, "keys", "limit", "ap", "--rpm", "1", code=1)["error"]
    assert "'ap'" in error["message"] and "app" in error["hint"]
    assert run(["keys", "create", "x", "--right", "ask", "--team", "a b"]) == 1
    assert "team" in capsys.readouterr().err


def test_the_key_of_the_environment() -> None:
    assert api_key({}) == "" == api_key({"PRESS_KEY": " "})
    assert api_key({"PRESS_KEY": " pr-abc\n"}) == "pr-abc"
    for wrong in ("pr-a\r\nx: y", "pr-ä", "a b", "x" * 5_000):
        with pytest.raises(SettingsError) as caught:
            api_key({"PRESS_KEY": wrong})
        assert wrong not in str(caught.value.as_dict())
