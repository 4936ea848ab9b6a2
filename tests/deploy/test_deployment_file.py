"""`deployment.toml`: what it says, what is wrong with it and where, and what it would change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pressroom.deploy import (
    DeploymentFileError,
    Deployments,
    Kind,
    RouteWish,
    apply,
    make_wish,
    plan,
    read_deployment,
)
from pressroom.deploy._entry import paired
from pressroom.kernel import DeployError, Workspace

NUMBERS = ("nan", "inf", "-inf", "-1", "0")
GOOD = """\
name = "chat"

[[route]]
name = "main"
ref = "parrot:1"
engine = "echo"
weight = 3
slots = 2
options = { text = "hello there" }

[[route]]
name = "spare"
ref = "raven:1"
engine = "echo"
weight = 0
price = { prompt = 0.15, completion = 0.60 }

[fallback]
order = ["spare"]

[cache]
exact = true

[rollout]
canary = 10
smoke = "smoke.jsonl"
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "smoke.jsonl").write_text('{"messages": [{"role": "user", "content": "?"}], "expect": "hello"}\n')
    with Workspace.open(tmp_path, environ={}) as opened:
        yield opened


def written(workspace: Workspace, text: str, name: str = "deployment.toml") -> Path:
    file = workspace.root / name
    file.write_text(text)
    return file


def read(workspace: Workspace, text: str = GOOD) -> Any:
    return read_deployment(workspace, written(workspace, text))


def test_a_file_is_read(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)  # paths in it are from its own folder
    said = read(workspace)
    main, spare = said.routes
    assert (said.name, main.name, main.ref, main.weight, main.price) == ("chat", "main", "parrot:1", 3, None)
    assert main.options == {"text": "hello there", "slots": 2}
    assert (spare.name, spare.weight, spare.price) == ("spare", 0, {"prompt": 0.15, "completion": 0.6})
    assert said.policy == {"fallback": {"order": ["spare"]}} and said.cache == {"exact": True}
    assert said.rollout["canary"] == 10 and said.rollout["smoke"][0]["expect"] == "hello"
    wish = apply(workspace, said)
    assert Deployments(workspace).get("chat") == wish and wish.ways == said.routes
    assert apply(workspace, said) == wish, "the same again changes nothing"


def test_a_route_is_called_by_its_model(workspace: Workspace) -> None:
    said = read(workspace, 'name = "chat"\n[[route]]\nref = "org/parrot:1"\nengine = "echo"\n')
    assert [route.name for route in said.routes] == ["parrot"]


@pytest.mark.parametrize(
    ("old", "new", "line", "says", "hint"),
    [
        ("weight = 3", "wieght = 3", 7, "no 'wieght'", "weight"),
        ("[fallback]", "[fallbak]", 18, "no 'fallbak'", "fallback"),
        ("canary = 10", "canari = 10", 25, "no 'canari'", "canary"),
        ("canary = 10", "canary = 200", 25, "'200'", "percentage"),
        ('order = ["spare"]', 'order = ["spar"]', 19, "'spar'", "spare"),
        ("exact = true", "exakt = true", 22, "exakt", "exact"),
        ("exact = true", "ttl_s = -1", 22, "ttl_s", ""),
        *[("exact = true", f"exact = true\nttl_s = {bad}", 23, f"cache.ttl_s is {bad}", "0.001") for bad in NUMBERS],
        ("exact = true", "exact = true\nmax_bytes = nan", 23, "cache.max_bytes is nan", "whole number"),
        ("exact = true", 'meaning = { deployment = "e", threshold = nan }', 22, "threshold is nan", "cosine"),
        ("[cache]", "[retry]\nbackoff_s = nan\n[cache]", 22, "[retry] backoff_s is nan", "0 to 60"),
        ("[cache]", "[[rule]]\nwhen = { tag = [2024-01-01] }\n[cache]", 22, "[[rule]] 1: when.tag is a date", ""),
        ("canary = 10", "watch_s = inf", 25, "watch_s is 'inf'", "seconds"),
        ("exact = true", '[cache.meaning]\ndeployment = "chat"', 23, "this deployment itself", "Name another"),
        ("weight = 3", "weight = -3", 7, "weight is '-3'", "0 to"),
        ("weight = 3", "weight = nan", 7, "weight is 'nan'", "0 to"),
        ("slots = 2", "slots = 2000", 8, "slots is 2000", "1024"),
        ('name = "spare"', 'name = "main"', 12, "two routes are called 'main'", "of its own"),
        ('name = "spare"', 'name = "a b"', 12, "'a b' cannot name a route", "Letters"),
        ('ref = "raven:1"', "", 11, "`ref` is missing", "NAME:NUMBER"),
        ('ref = "raven:1"', "ref = 3", 13, "`ref` is no text", "NAME:NUMBER"),
        ('name = "chat"', "", 0, "`name` is missing", "answers to"),
        ('name = "chat"', 'name = "../x"', 1, "`name` is '../x'", "answers to"),
        ("prompt = 0.15", "promt = 0.15", 16, "no 'promt'", "prompt"),
        ("prompt = 0.15", "prompt = -1", 16, "price of `prompt` is '-1'", "0 to"),
        ('engine = "echo"\nweight = 3', 'engine = "ecko"\nweight = 3', 6, "ecko", "echo"),
        ('engine = "echo"\nweight = 3', 'engine = "llamacpp"\nweight = 3', 5, "parrot", ""),
        ('text = "hello there"', "txt = 1", 9, "no option 'txt'", ""),
        ("[rollout]", "[rollout", 24, "not TOML", ""),
        ('smoke = "smoke.jsonl"', 'smoke = "smok.jsonl"', 26, "smok.jsonl cannot be read", ""),
        ("exact = true", "exact = 2024-01-01", 22, "cache.exact is a date", ""),
        ("weight = 3", "replicas = 0", 7, "replicas is 0", "1 to 64"),
        ("weight = 3", "idle_stop_s = 0.001", 7, "0.001 s", "1 to"),
    ],
)
def test_a_typo_is_an_error_with_its_line(
    workspace: Workspace, old: str, new: str, line: int, says: str, hint: str
) -> None:
    assert old in GOOD
    with pytest.raises(DeploymentFileError) as refused:
        read(workspace, GOOD.replace(old, new))
    problem = refused.value.facts["problems"][0]
    assert says in problem["message"] and hint in problem["hint"], problem
    assert problem["line"] == line, problem
    assert Deployments(workspace).list() == []


def test_every_problem_is_said_at_once(workspace: Workspace) -> None:
    with pytest.raises(DeploymentFileError) as refused:
        read(workspace, GOOD.replace("weight", "wait").replace("canary", "kanary"))
    assert [each["line"] for each in refused.value.facts["problems"]] == [7, 15, 25]
    assert "line 7" in refused.value.message and "line 25" in refused.value.message


def test_every_problem_of_every_section_is_said_at_once(workspace: Workspace) -> None:
    text = (
        GOOD.replace("weight = 3", "wieght = 3").replace('["spare"]', '["spar"]').replace("exact = true", "ttl_s = nan")
    )
    text = (
        text.replace("canary = 10", "canary = 200\nwatch_s = -1\nkeep_hot_s = 3")
        + """
[cache.meaning]
deployment = ""
[retry]
attempts = -1
backoff_s = 1e9
[hedge]
after_s = 0
[[rule]]
when = { personal_data = true }
only = ["own"]
[[rule]]
when = { language = "x" }
only = ["own"]
[[rule]]
when = { tag = "a" }
only = ["own", "nobody"]
"""
    )
    with pytest.raises(DeploymentFileError) as refused:
        read(workspace, text)
    problems = refused.value.facts["problems"]
    lines = text.splitlines()
    named = [lines[each["line"] - 1].partition(" =")[0].strip("[]") for each in problems]
    assert named == [
        "wieght", "order", "ttl_s", "canary", "watch_s", "keep_hot_s", "deployment", "attempts", "backoff_s", "after_s",
        "when", "only",
    ], problems  # fmt: skip
    assert refused.value.message.count("\n") == len(problems) - 1
    assert Deployments(workspace).list() == []


def test_what_is_only_wrong_for_want_of_something_wrong_is_not_told(workspace: Workspace) -> None:
    with pytest.raises(DeploymentFileError) as refused:
        read(
            workspace,
            GOOD.replace("exact = true", 'exact = "yes"\nttl_s = 0\nmax_bytes = 1').replace('spare"]', 'no"]'),
        )
    assert [each["line"] for each in refused.value.facts["problems"]] == [19, 22, 23, 24]


def test_who_makes_vectors_is_another_deployment_on_own_machines(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(workspace, read(workspace))
    meaning = 'exact = true\n[cache.meaning]\ndeployment = "%s"'
    with pytest.raises(DeploymentFileError, match=r"line 24.*'chat', which is this deployment itself"):
        read(workspace, GOOD.replace("exact = true", meaning % "chat"))
    other = GOOD.replace('name = "chat"', 'name = "other"').replace("exact = true", meaning % "chat")
    assert read(workspace, other).cache["meaning"] == {"deployment": "chat"}
    monkeypatch.setattr("pressroom.engines.backends.echo.Backend.elsewhere", True)
    with pytest.raises(DeploymentFileError, match=r"line 24.*asks somebody else \(echo\)"):
        read(workspace, other)


def test_a_file_may_be_anything(workspace: Workspace) -> None:
    for text in (
        "",
        "route = 3\nname = 'x'",
        "name = 'x'\nroute = []",
        "[" * 5000,
        "name = 'x'\nrollout = 1\ncache = 2",
    ):
        with pytest.raises(DeploymentFileError):
            read(workspace, text)
    file = workspace.root / "binary.toml"
    file.write_bytes(b"\xff\x00")
    for path in (file, workspace.root, workspace.root / "none.toml"):
        with pytest.raises(DeploymentFileError):
            read_deployment(workspace, path)


def test_a_secret_in_options_is_not_repeated(workspace: Workspace) -> None:
    with pytest.raises(DeploymentFileError) as refused:
        read(workspace, GOOD.replace('text = "hello there"', 'key = "sk-0123456789"'))
    assert "sk-0123456789" not in str(refused.value.as_dict())


# Plans.


def changes(workspace: Workspace, text: str) -> list[tuple[Kind, str]]:
    found = plan(Deployments(workspace), read(workspace, text))
    return [(change.kind, change.subject) for change in found.changes]


def test_a_plan_is_the_difference(workspace: Workspace) -> None:
    assert changes(workspace, GOOD)[:2] == [(Kind.START, "route main"), (Kind.START, "route spare")]
    apply(workspace, read(workspace))
    assert changes(workspace, GOOD) == []
    assert changes(workspace, GOOD.replace("weight = 3", "weight = 4")) == [(Kind.TELL, "route main")]
    assert changes(workspace, GOOD.replace("hello there", "good day")) == [(Kind.ROLL_OUT, "route main")]
    assert changes(workspace, GOOD.replace("parrot:1", "parrot:2")) == [(Kind.ROLL_OUT, "route main")]
    assert changes(workspace, GOOD.replace("canary = 10", "canary = 20")) == [(Kind.TELL, "[rollout]")]
    assert changes(workspace, GOOD.replace("exact = true", "exact = false")) == [(Kind.TELL, "[cache]")]
    assert changes(workspace, GOOD.replace("0.15", "0.20")) == [(Kind.TELL, "route spare")]
    without = GOOD.replace(GOOD[GOOD.index('[[route]]\nname = "spare"') : GOOD.index("[cache]")], "")
    assert changes(workspace, without) == [(Kind.STOP, "route spare"), (Kind.TELL, "[fallback]")]
    Deployments(workspace).stop("chat")
    assert changes(workspace, GOOD)[0] == (Kind.START, "deployment")


def test_a_plan_for_what_was_deployed_by_hand(workspace: Workspace) -> None:
    make_wish(workspace, "parrot:1", name="chat", engine="echo")
    text = 'name = "chat"\n[[route]]\nref = "parrot:1"\nengine = "echo"\n'
    assert changes(workspace, text) == [(Kind.TELL, "route main")], "it gets a name, and nothing restarts"


def test_a_version_that_is_deployed_by_hand_keeps_the_other_routes(workspace: Workspace) -> None:
    apply(workspace, read(workspace))
    with pytest.raises(DeployError, match="not clear") as refused:
        make_wish(workspace, "parrot:2", name="chat", engine="echo")
    assert "--route" in refused.value.hint
    with pytest.raises(DeployError, match="no route 'mian'") as refused:
        make_wish(workspace, "parrot:2", name="chat", engine="echo", on_route="mian")
    assert "main" in refused.value.hint
    wish = make_wish(workspace, "parrot:2", name="chat", engine="echo", on_route="main")
    assert [(way.name, way.ref, way.weight) for way in wish.ways] == [("main", "parrot:2", 3), ("spare", "raven:1", 0)]
    assert wish.policy and wish.cache
    with pytest.raises(DeployError, match="nobody named"):
        make_wish(workspace, "parrot:2", name="new", engine="echo", on_route="x")


def test_what_goes_on_from_what() -> None:
    def ways(*pairs: tuple[str, str]) -> list[RouteWish]:
        return [RouteWish(name=name, ref=ref, digest="", engine="echo") for name, ref in pairs]

    old = ways(("a", "1"), ("b", "2"), ("c", "3"))
    assert paired(ways(("b", "9"), ("a", "1"), ("c", "3")), old) == [1, 0, 2]
    assert paired(ways(("x", "2"), ("a", "1")), old) == [1, 0], "it runs the same"
    assert paired(ways(("x", "9")), ways(("main", "1"))) == [0], "the only one of each"
    assert paired(ways(("x", "9"), ("y", "8")), ways(("main", "1"))) == [None, None]
    assert paired(ways(("x", "9")), []) == [None]


def test_the_example_is_one(workspace: Workspace) -> None:
    examples = Path(__file__).parents[2] / "examples"
    text = (examples / "deployment.toml").read_text()
    for engine in ("auto", "vendor"):
        text = text.replace(f'engine = "{engine}"', 'engine = "echo"')
    (workspace.root / "smoke.jsonl").write_text((examples / "smoke.jsonl").read_text())
    said = read(workspace, text)
    assert [route.name for route in said.routes] == ["own", "vendor"] and len(said.rollout["smoke"]) == 3
