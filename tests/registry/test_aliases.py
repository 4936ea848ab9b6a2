"""Aliases: who may move them, what they must meet, and that every move and refusal is on record."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from pressroom.kernel import AccessError, InUseError, Keys, NotFoundError, Workspace
from pressroom.registry import Bound, Figure, FileEntry, FloorError, PromotionError, Registry, Version


@pytest.fixture
def registry(workspace: Workspace) -> Registry:
    return Registry(workspace)


def make(registry: Registry, content: bytes, name: str = "m", **more: object) -> Version:
    blob = registry.store.put([content])
    files = [FileEntry(path="model.gguf", blob=blob.digest, size=blob.size)]
    return registry.register(name, files, **more)  # type: ignore[arg-type]


def test_an_alias_is_a_reference_like_any_other(registry: Registry) -> None:
    first, second = make(registry, b"one"), make(registry, b"two")
    move = registry.promote("m:1", "production", why="the only one that is quick enough")
    assert (move.action, move.from_number, move.to_number, move.to_digest) == ("promoted", None, 1, first.digest)
    assert move.who.startswith("local:") and move.at > 0
    found = registry.get("m:production")
    assert (found.number, found.aliases) == (1, ("production",))
    assert registry.get(f"m:production@{first.digest[:20]}").number == 1
    with pytest.raises(NotFoundError):
        registry.get(f"m:production@{second.digest}")
    registry.promote("m:2", "production")
    registry.promote("m:production", "canary")
    assert registry.get("m:2").aliases == ("canary", "production")
    assert registry.get("m:1").aliases == ()
    with pytest.raises(NotFoundError) as caught:
        registry.get("m:staging")
    assert "production → 2" in caught.value.hint


def test_the_history_says_who_when_why_from_and_to(registry: Registry) -> None:
    make(registry, b"one")
    make(registry, b"two")
    registry.promote("m:1", "production", why="first")
    registry.promote("m:2", "production", why="better")
    registry.promote("m:2", "production", why="again")  # it is there already: not a move
    registry.demote("m", "production", why="no more")
    moves = registry.history("m")
    assert [(move.action, move.from_number, move.to_number, move.why) for move in moves] == [
        ("promoted", None, 1, "first"),
        ("promoted", 1, 2, "better"),
        ("demoted", 2, None, "no more"),
    ]
    assert [move.at for move in moves] == sorted(move.at for move in moves)
    assert registry.history("m", "canary") == []
    with pytest.raises(NotFoundError):
        registry.get("m:production")
    with pytest.raises(NotFoundError):
        registry.demote("m", "production")
    with pytest.raises(NotFoundError):
        registry.history("nothing")


def test_the_history_outlives_the_version_and_the_model(registry: Registry) -> None:
    made = make(registry, b"one")
    registry.promote("m", "production")
    registry.demote("m", "production")
    registry.delete("m:1")
    assert [move.to_digest for move in registry.history("m")] == [made.digest, None]


def test_what_cannot_be_an_alias(registry: Registry) -> None:
    make(registry, b"one")
    for alias in ("3", "007", "main", "a" * 40, "", "-x", "a b", "a/b", "a:b", "x" * 65, "ü"):
        with pytest.raises(PromotionError, match="alias"):
            registry.promote("m", alias)
    assert registry.history("m") == []


def test_what_is_aliased_is_not_removed(registry: Registry) -> None:
    make(registry, b"one")
    make(registry, b"two")
    registry.promote("m:1", "production")
    registry.promote("m:1", "canary")
    with pytest.raises(InUseError) as caught:
        registry.delete("m:1")
    assert "m:canary and m:production point to it" in caught.value.message
    assert registry.get("m:production").number == 1
    registry.holders.clear()  # also where nobody asked: an alias that came after the look
    with pytest.raises(InUseError, match="m:canary"):
        registry.delete("m:1")
    assert registry.holds(registry.get("m:1"))
    registry.delete("m:2")


def test_equal_files_under_two_names_have_aliases_of_their_own(registry: Registry) -> None:
    make(registry, b"one", "a")
    make(registry, b"one", "b")
    registry.promote("a", "production")
    with pytest.raises(NotFoundError):
        registry.get("b:production")
    registry.delete("b")


def test_once_a_key_may_promote_only_a_key_may(registry: Registry, workspace: Workspace) -> None:
    make(registry, b"one")
    keys = Keys(workspace)
    _, writer = keys.create("writer", ["write"])
    assert registry.promote("m", "production").who.startswith("local:")
    _, releaser = keys.create("releaser", ["promote:m"])
    with pytest.raises(AccessError, match="a key is needed") as caught:
        registry.demote("m", "production", why="by hand")
    assert "PRESS_KEY" in caught.value.hint
    with pytest.raises(AccessError, match="writer"):
        registry.demote("m", "production", key=writer)
    with pytest.raises(AccessError, match="not known"):
        registry.demote("m", "production", key="pr-" + "x" * 43)
    assert registry.get("m:production").number == 1
    move = registry.demote("m", "production", key=releaser)
    assert move.who == "key:releaser"
    make(registry, b"two", "other")
    with pytest.raises(AccessError, match="releaser"):
        registry.promote("other", "production", key=releaser)
    refused = [move for move in registry.history() if move.action == "refused"]
    assert [move.who.partition(":")[0] for move in refused] == ["local", "key", "local", "key"]
    assert refused[0].why == "by hand" and refused[1].who == "key:writer" and "unknown key" in refused[2].who
    assert (refused[3].name, refused[3].alias, refused[3].to_number) == ("other", "production", 1)
    assert all(move.details["reason"] for move in refused)
    assert not any(secret in repr(registry.history()) for secret in (writer, releaser, "x" * 43))
    keys.revoke("releaser")
    assert registry.promote("m", "production").who.startswith("local:")


def bounds(*texts: str) -> list[Bound]:
    return [Bound.parse(text.partition(" ")[2], text.partition(" ")[0]) for text in texts]


def figure(name: str, value: float | int | str, **more: str) -> Figure:
    return Figure(name=name, value=value, **more)


def test_below_the_floor_nothing_moves_and_the_refusal_is_on_record(registry: Registry) -> None:
    base = make(registry, b"base" * 10, figures=[figure("perplexity", 20.0)])
    good = make(registry, b"good", parent=base.digest, figures=[figure("perplexity", 20.5)])
    bad = make(registry, b"bad!", parent=base.digest, figures=[figure("perplexity", 21.0)])
    registry.aliases.set_floor("m", "production", bounds("max perplexity=parent+3%", "max bytes=10"))
    move = registry.promote(good.ref, "production", why="smaller")
    assert [check["met"] for check in move.details["checks"]] == [True, True]
    with pytest.raises(PromotionError) as caught:
        registry.promote(bad.ref, "production", why="try")
    assert "perplexity is 21 and must be at most 20.6" in caught.value.message
    assert registry.get("m:production") == registry.get(good.ref)
    with pytest.raises(PromotionError) as caught:
        registry.promote(base.ref, "production")
    assert "bytes is 40 and must be at most 10" in caught.value.message and "no parent" in caught.value.message
    refused = registry.history("m", "production")[-2:]
    assert [(move.action, move.to_number, move.from_number) for move in refused] == [
        ("refused", 3, 2),
        ("refused", 1, 2),
    ]
    assert refused[0].why == "try" and "20.6" in refused[0].details["reason"]
    # Another alias has no floor.
    registry.promote(bad.ref, "canary")


def test_a_missing_figure_refuses_with_what_to_run(registry: Registry) -> None:
    base = make(registry, b"base")
    made = make(registry, b"one", parent=base.digest)
    registry.aliases.set_floor("m", "production", bounds("min tokens_per_second_1=50"))
    with pytest.raises(PromotionError) as caught:
        registry.promote(made.ref, "production")
    assert "no tokens_per_second_1" in caught.value.message and "press measure m:2" in caught.value.hint
    registry.add_figures(made.ref, [figure("tokens_per_second_1", 49.9, unit="tokens/s")])
    with pytest.raises(PromotionError, match=r"49\.9 and must be at least 50"):
        registry.promote(made.ref, "production")
    registry.add_figures(made.ref, [figure("tokens_per_second_1", 50, unit="tokens/s")])
    registry.promote(made.ref, "production")
    registry.aliases.set_floor("m", "production", bounds("max perplexity=parent"))
    registry.add_figures(made.ref, [figure("perplexity", 9)])
    with pytest.raises(PromotionError) as caught:
        registry.promote(made.ref, "production")
    assert "press measure m:1" in caught.value.hint
    registry.add_figures(made.ref, [figure("license", "MIT")])
    registry.aliases.set_floor("m", "production", bounds("max license=3"), remove=["perplexity"])
    with pytest.raises(PromotionError, match="the text 'MIT'"):
        registry.promote(made.ref, "production")


def test_a_parent_that_is_not_here_cannot_be_compared_with(registry: Registry) -> None:
    made = make(registry, b"one", parent="sha256-" + "a" * 64, figures=[figure("perplexity", 9)])
    registry.aliases.set_floor("m", "production", bounds("max perplexity=parent+1%"))
    with pytest.raises(PromotionError, match="not registered here"):
        registry.promote(made.ref, "production")


def test_figures_that_were_measured_otherwise_are_not_compared(registry: Registry) -> None:
    base = make(
        registry,
        b"base",
        figures=[figure("perplexity", 20, how="8 windows"), figure("ttft_ms", 10, unit="ms", where="a large machine")],
    )
    made = make(
        registry,
        b"one",
        parent=base.digest,
        figures=[figure("perplexity", 20, how="64 windows"), figure("ttft_ms", 10, unit="ms", where="a small one")],
    )
    registry.aliases.set_floor("m", "production", bounds("max perplexity=parent"))
    with pytest.raises(PromotionError, match="not measured in the same way") as caught:
        registry.promote(made.ref, "production")
    assert "press measure m:2, press measure m:1" in caught.value.hint
    registry.aliases.set_floor("m", "production", bounds("max ttft_ms=parent"), remove=["perplexity"])
    with pytest.raises(PromotionError, match="not measured on the same machine"):
        registry.promote(made.ref, "production")


def test_floors_are_stored_listed_removed_and_on_record(registry: Registry, workspace: Workspace) -> None:
    make(registry, b"one")
    aliases = registry.aliases
    assert aliases.floor("m") == {}
    aliases.set_floor("m", "production", bounds("max bytes=150MB", "min bytes=1", "max perplexity=+3%parent"), why="so")
    assert {each: [str(b) for b in of_it] for each, of_it in Registry(workspace).aliases.floor("m").items()} == {
        "production": ["max bytes=150MB", "min bytes=1", "max perplexity=parent+3%"]
    }
    aliases.set_floor("m", "production", bounds("max bytes=100MB"), remove=["perplexity"])
    assert [str(b) for b in aliases.floor("m", "production")["production"]] == ["max bytes=100MB", "min bytes=1"]
    with pytest.raises(NotFoundError, match="ttft_ms"):
        aliases.set_floor("m", "production", [], remove=["ttft_ms"])
    with pytest.raises(NotFoundError, match="no model"):
        aliases.set_floor("mm", "production", bounds("max bytes=1"))
    assert [(move.action, move.details["bounds"]) for move in registry.history("m", "production")] == [
        ("floor set", ["max bytes=150MB", "min bytes=1", "max perplexity=parent+3%"]),
        ("floor removed", ["max perplexity=parent+3%"]),
        ("floor set", ["max bytes=100MB"]),
    ]
    Keys(workspace).create("k", ["promote"])
    with pytest.raises(AccessError):
        aliases.set_floor("m", "production", bounds("max bytes=999GB"), why="let me in")
    assert registry.history("m")[-1].action == "refused" and registry.history("m")[-1].why == "let me in"
    assert [str(b) for b in aliases.floor("m", "production")["production"]] == ["max bytes=100MB", "min bytes=1"]


@pytest.mark.parametrize(
    ("text", "written", "of_parent", "limit"),
    [
        ("x=3", "3", None, 3),
        ("x= 150 MB ", "150MB", None, 150e6),
        ("x=1.5GiB", "1.5GiB", None, 1.5 * 2**30),
        ("x=9e8", "9e8", None, 9e8),
        ("x=-2.5", "-2.5", None, -2.5),
        ("x=+2", "2", None, 2),
        ("x=1_000", "1000", None, 1000),
        ("x=parent", "parent", 4.0, 4.0),
        ("x=parent+3%", "parent+3%", 100.0, 103.0),
        ("x=+3%parent", "parent+3%", 100.0, 103.0),
        ("x=parent - 5 %", "parent-5%", 100.0, 95.0),
        ("x=parent+3%", "parent+3%", -100.0, -97.0),
        ("x=parent-10MB", "parent-10MB", 15e6, 5e6),
        ("x=parent+.5", "parent+.5", 1.0, 1.5),
    ],
)
def test_how_a_bound_is_written(text: str, written: str, of_parent: float | None, limit: float) -> None:
    bound = Bound.parse(text, "max")
    assert bound.text == written and bound.limit(of_parent) == pytest.approx(limit)
    assert Bound.parse(f"x={bound.text}", "max") == bound


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "=3", "x=", "x=much", "x=3%", "x=parent3%", "x=parent*2", "x=3XB", "x=iB", "x=nan", "x=inf"),
        *("x=1e999", "x y=3", "x=3=4", "x=" + "1" * 100, "x=parent+3%MB", "x=٣", "x=--3"),
    ],
)
def test_what_is_no_bound_is_refused(text: str) -> None:
    with pytest.raises(FloorError) as caught:
        Bound.parse(text, "max")
    assert caught.value.hint
    with pytest.raises(FloorError, match="sense"):
        Bound.parse("x=3", "most")


def test_two_that_promote_at_once(registry: Registry) -> None:
    for number in range(4):
        make(registry, b"%d" % number)
    errors: list[Exception] = []

    def move(number: int) -> None:
        try:
            for _ in range(5):
                registry.promote(f"m:{number}", "production")
        except Exception as error:  # noqa: BLE001  whatever it is, the test shows it
            errors.append(error)

    threads = [threading.Thread(target=move, args=(number,)) for number in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert_consistent(registry)


def assert_consistent(registry: Registry) -> None:
    """Each move starts where the one before it ended, and the alias is where the last one put it."""
    at: int | None = None
    for move in registry.history("m", "production"):
        if move.action in ("promoted", "demoted"):
            assert move.from_number == at, registry.history("m", "production")
            at = move.to_number
    pointing = [version.number for version in registry.list("m") if "production" in version.aliases]
    assert pointing == ([] if at is None else [at])


def test_removing_and_promoting_at_once(registry: Registry) -> None:
    make(registry, b"stays")
    for turn in range(10):
        version = make(registry, b"turn %d" % turn)
        outcome: list[object] = []

        def promote(version: Version = version, outcome: list[object] = outcome) -> None:
            try:
                registry.promote(version.ref, "production")
                outcome.append("promoted")
            except NotFoundError as error:
                outcome.append(error)

        thread = threading.Thread(target=promote)
        thread.start()
        try:
            registry.delete(version.ref)
            outcome.append("removed")
        except InUseError as error:
            outcome.append(error)
        thread.join()
        assert ("promoted" in outcome) != ("removed" in outcome), outcome
        assert_consistent(registry)
        if "promoted" in outcome:
            assert registry.get("m:production").number == version.number


_MOVE = """
import sys
from pathlib import Path
from pressroom.kernel import Workspace
from pressroom.registry import Registry

with Workspace.open(Path(sys.argv[1]), environ={}) as workspace:
    registry = Registry(workspace)
    print("ready", flush=True)
    number = 0
    while True:
        number = number % 3 + 1
        registry.promote(f"m:{number}", "production", why=str(number))
        if number == 2:
            registry.demote("m", "production")
"""


@pytest.mark.slow
def test_killed_at_any_moment_an_alias_and_its_history_agree(registry: Registry, workspace: Workspace) -> None:
    import random

    chance = random.Random(7)
    for number in range(3):
        make(registry, b"%d" % number)
    moves = 0
    for _ in range(50):
        process = subprocess.Popen(
            [sys.executable, "-c", _MOVE, str(workspace.root)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        try:
            process.wait(chance.uniform(0.0, 0.08))
        except subprocess.TimeoutExpired:
            process.kill()
        process.wait()
        process.stdout.close()
        assert process.returncode == -9
        assert_consistent(registry)
        assert len(registry.history("m")) >= moves
        moves = len(registry.history("m"))
    assert moves > 50


@pytest.mark.parametrize("bound", ["bytes=parent+1e308%", "bytes=1e300", "bytes=parent+99999999999999999999%"])
def test_bounds_out_of_all_measure_are_refused_when_they_are_declared(bound: str) -> None:
    with pytest.raises(FloorError, match="is not a bound"):
        Bound.parse(bound, "min")


@pytest.mark.parametrize(
    "bound",
    [
        *("bytes=-1GB", "bytes=0", "perplexity=0", "perplexity=0.99", "perplexity=-3", "tokens_per_second_8=0"),
        *("ttft_ms=-1", "peak_memory_bytes=0MB", "bytes=parent-100%", "perplexity=parent-250%"),
    ],
)
def test_what_nothing_can_meet_is_no_floor(registry: Registry, bound: str) -> None:
    make(registry, b"one")
    registry.aliases.set_floor("m", "production", bounds("max bytes=10"))
    with pytest.raises(FloorError, match="nothing can meet") as caught:
        registry.aliases.set_floor("m", "production", bounds(f"max {bound}"))
    assert "--remove" in caught.value.hint
    assert [str(b) for b in registry.aliases.floor("m")["production"]] == ["max bytes=10"]
    assert len(registry.history("m")) == 1
    registry.aliases.set_floor("m", "canary", bounds(f"min {bound}"))  # everything meets it: that is allowed


def test_two_bounds_that_exclude_each_other_are_no_floor(registry: Registry) -> None:
    make(registry, b"one")
    aliases = registry.aliases
    with pytest.raises(FloorError, match="both max kl_mean=-1 and min kl_mean=0"):
        aliases.set_floor("m", "production", bounds("max kl_mean=-1", "min kl_mean=0"))
    aliases.set_floor("m", "production", bounds("min bytes=5"))
    with pytest.raises(FloorError, match="nothing can meet both"):
        aliases.set_floor("m", "production", bounds("max bytes=4"))
    aliases.set_floor("m", "production", bounds("max bytes=4"), remove=["bytes"])
    aliases.set_floor("m", "production", bounds("min bytes=4", "max perplexity=1", "max x=-1", "max bytes=parent-99%"))
