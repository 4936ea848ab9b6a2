"""Which branch is asked first."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from pressroom.gateway.policy import Policy
from pressroom.gateway.protocols.openai import COMPLETION

from .scripted import Branch, Client, Loop, Try, World, branch, run, served


def answered(world: World, **asked: Any) -> str:
    """Ask, let the branch answer, and say which it was."""
    request = world.ask(**asked)
    world.tries[-1].whole()
    assert request.client.over
    return world.tries[-1].branch


def test_each_gets_its_share() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, branch("a", 70), branch("b", 20), branch("c", 10), branch("none", 0))
        got = Counter(answered(world) for _ in range(4_000))
        assert set(got) == {"a", "b", "c"}
        # Five standard deviations at most.
        for name, share in (("a", 0.7), ("b", 0.2), ("c", 0.1)):
            assert abs(got[name] - 4_000 * share) < 5 * (4_000 * share * (1 - share)) ** 0.5
        assert {name: world.marks(name)["requests"] for name in got} == got
        world.still()

    run(test)


def test_one_route_without_branches() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop)
        assert answered(world) == ""
        world.still()

    run(test)


def test_where_none_has_a_weight_all_are_asked() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, branch("a", 0), branch("b", 0))
        assert {answered(world) for _ in range(50)} == {"a", "b"}

    run(test)


def test_who_always_gets_which() -> None:
    async def test(loop: Loop) -> None:
        split = {"key:alice": "b", "team:research": "c", "tag:internal": "b"}
        world = World(loop, branch("a", 1), branch("b", 0), branch("c", 0), policy={"split": split})
        assert answered(world) == "a"
        assert answered(world, key="alice") == "b"
        assert answered(world, key="bob", team="research") == "c"
        assert answered(world, key="alice", team="research") == "b"
        assert answered(world, tag="internal") == "b"
        assert answered(world, key="bob", team="other", tag="public") == "a"

    run(test)


def test_a_split_to_a_branch_that_is_gone_is_none() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, branch("a"), branch("b", 0), policy={"split": {"key:alice": "b"}})
        world.served = served(branch("a"))
        assert answered(world, key="alice") == "a"

    run(test)


def test_the_same_subject_keeps_its_branch() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, branch("a"), branch("b"), policy={"split": {"sticky": True}})
        before = {name: answered(world, key=name) for name in map(str, range(400))}
        assert 120 < Counter(before.values())["a"] < 280
        assert {name: answered(world, key=name) for name in before} == before
        # Also in another process, and whoever has no key by what the client calls its user.
        other = World(loop, branch("a"), branch("b"), policy={"split": {"sticky": True}}, seed=2)
        assert {name: answered(other, user=name) for name in before} == before
        assert len({answered(other, user="long" * 1_000) for _ in range(10)}) == 1
        # Without either it is drawn.
        assert {answered(world) for _ in range(50)} == {"a", "b"}

    run(test)


def test_few_change_when_weights_move_a_little() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, branch("a", 50), branch("b", 50), policy={"split": {"sticky": True}})
        before = {name: answered(world, key=name) for name in map(str, range(1_000))}
        world.served = served(branch("a", 55), branch("b", 45))
        after = {name: answered(world, key=name) for name in before}
        changed = [name for name in before if before[name] != after[name]]
        assert 0 < len(changed) < 100  # 50 must
        assert all(after[name] == "a" for name in changed)

    run(test)


def test_one_that_is_not_ready_is_passed_over() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, branch("a", 99, ready=False), branch("b", 1), policy={"split": {"key:alice": "a"}})
        assert {answered(world) for _ in range(20)} == {"b"}
        assert answered(world, key="alice") == "b"
        assert world.marks("a")["passed_over"] == 1
        world.served = served(branch("a", 99), branch("b", 1))
        assert answered(world, key="alice") == "a"
        # Where none is ready one is asked all the same: it may be coming.
        world.served = served(branch("a", 99, ready=False), branch("b", 0, ready=False))
        assert answered(world) == "a"

    run(test)


def broken(world: World, name: str, times: int) -> None:
    """Let `name` fail so often."""
    while "m" not in world.steerings.snapshot() or world.marks(name)["failed"] < times:
        world.ask()
        while world.live:
            tried = world.live[0]
            tried.fail() if tried.branch == name else tried.whole()


def test_one_that_fails_again_and_again_is_passed_over_for_a_while() -> None:
    async def test(loop: Loop) -> None:
        policy = {"breaker": {"failures": 3, "pause_s": 10}}
        world = World(loop, branch("a", 1), branch("b", 0), policy=policy | {"fallback": {"order": ["a", "b"]}})
        world.ask()
        world.tries[-1].whole()
        broken(world, "a", 2)
        assert world.marks("a")["breaker"] == "closed"
        assert answered(world) == "a"  # one that worked in between: they were not in a row
        broken(world, "a", 5)
        assert world.marks("a")["breaker"] == "open" and world.marks("a")["opened"] == 1
        assert [answered(world) for _ in range(3)] == ["b", "b", "b"]
        loop.now += 10
        assert world.marks("a")["breaker"] == "half_open"
        probe = world.ask()
        assert world.tries[-1].branch == "a"
        tried = world.tries[-1]
        assert answered(world) == "b"  # one tries it, not two
        tried.fail()
        world.tries[-1].whole()
        assert probe.client.by == "b" and world.marks("a")["breaker"] == "open"
        loop.now += 10
        assert answered(world) == "a"
        assert world.marks("a")["breaker"] == "closed"
        assert answered(world) == "a"
        world.still()

    run(test)


def test_a_try_whose_client_leaves_says_nothing_and_the_next_one_tries() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, branch("a", 1), branch("b", 0), policy={"fallback": {"order": ["b"]}})
        broken(world, "a", 5)
        loop.now += 10
        world.ask().leave()
        assert world.tries[-1].branch == "a" and world.marks("a")["breaker"] == "half_open"
        world.still()
        assert answered(world) == "a" and world.marks("a")["breaker"] == "closed"

    run(test)


def test_a_stream_that_begins_lets_others_in_and_is_believed_when_it_has_ended() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, branch("a", 1), branch("b", 0), policy={"fallback": {"order": ["b"]}})
        broken(world, "a", 5)
        loop.now += 10
        world.ask(stream=True)
        tried = world.tries[-1]
        tried.begin(b"x")
        assert world.marks("a")["breaker"] == "closed"
        assert answered(world) == "a"
        tried.fail()
        assert world.marks("a")["failures"] == 1
        broken(world, "a", 10)
        assert world.marks("a")["breaker"] == "open"
        loop.now += 10
        world.ask(stream=True)
        world.tries[-1].begin(b"x")
        world.tries[-1].fail()  # the first word after the pause was no proof
        assert world.marks("a")["breaker"] == "open"
        world.still()

    run(test)


def test_where_all_have_failed_one_is_asked_all_the_same() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, branch("a"), script=lambda tried: None)
        broken(world, "a", 7)
        assert world.marks("a")["breaker"] == "open"
        assert answered(world) == "a"
        assert world.marks("a")["breaker"] == "closed"

    run(test)


def test_without_a_breaker_nobody_is_passed_over() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, branch("a"), branch("b", 0), policy={"breaker": {"failures": 0}, "fallback": {"order": []}})
        broken(world, "a", 50)
        assert answered(world) == "a" and world.marks("a")["breaker"] == "closed"

    run(test)


def test_what_is_known_of_a_branch_stays_while_the_branch_does() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, branch("a"), branch("b", 0), policy={"fallback": {"order": ["b"]}})
        broken(world, "a", 5)
        world.policy = Policy.parse({"fallback": {"order": ["c"]}}, ["a", "c"], ["a", "c"])
        world.served = served(branch("a"), branch("c", 0))
        assert answered(world) == "c"
        assert world.marks("a")["breaker"] == "open" and world.marks("c")["requests"] == 1
        assert "b" not in world.steerings.snapshot()["m"]
        world.served = served(branch("c", 0))
        answered(world)
        assert "a" not in world.steerings.snapshot()["m"]
        assert world.steerings.of("m", None).policy == Policy()
        world.steerings.forget("m")
        assert world.steerings.snapshot() == {}

    run(test)


def test_branches_may_change_while_a_request_is_under_way() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, branch("a"), branch("b", 0), policy={"fallback": {"order": ["b"]}})
        request = world.ask()
        world.served = served(branch("c"))
        assert answered(world) == "c"
        world.tries[0].fail()  # what is there now is for whoever starts it
        assert world.tries[-1].branch == "b"
        world.tries[-1].whole()
        assert request.client.over
        world.still()

    run(test)


def test_the_order_of_those_that_follow() -> None:
    async def test(loop: Loop) -> None:
        def all_asked(policy: dict[str, Any], *branches: Branch) -> list[str]:
            world = World(loop, *branches, policy=policy, script=lambda tried: None)
            world.ask(key="k")
            while world.live:
                world.live[0].fail()
            world.still()
            return world.asked

        pinned = {"split": {"key:k": "a"}}
        four = branch("a", 5), branch("b", 10), branch("c", 30), branch("d", 0)
        assert all_asked(pinned, *four) == ["a", "c", "b"]
        assert all_asked(pinned | {"fallback": {"order": ["d", "a", "b"]}}, *four) == ["a", "d", "b"]
        assert all_asked(pinned | {"fallback": {"order": []}}, *four) == ["a"]
        assert all_asked(pinned, branch("a"), branch("b", ready=False), branch("c", 0.5)) == ["a", "c"]

    run(test)


@pytest.mark.parametrize("prefer", ["long", ["long", "b"], "own"])
def test_those_that_a_rule_prefers_come_first(prefer: Any) -> None:
    async def test(loop: Loop) -> None:
        rule = [{"when": {"longer_than": 10}, "prefer": prefer}]
        branches = branch("vendor", 90, vendor=True), branch("a", 5), branch("b", 5), branch("long", 0)
        world = World(loop, *branches, policy={"rule": rule, "rules": {"default": False}})
        world.ask(endpoint=COMPLETION, prompt="x" * 11)
        while world.live:
            world.live[0].fail()
        assert sorted(world.asked) == sorted(set(world.asked))
        if prefer == "own":
            assert world.asked[0] in ("a", "b") and set(world.asked[:2]) == {"a", "b"} and world.asked[2:] == ["vendor"]
        elif prefer == "long":
            assert world.asked == ["long", "vendor", "a", "b"]
        else:
            assert world.asked == ["long", "b", "vendor", "a"]
        world.tries.clear()
        for _ in range(20):
            answered(world, endpoint=COMPLETION, prompt="x" * 10)
        assert world.asked.count("vendor") > 10

    run(test)


def test_a_plain_client_is_told_who_answered() -> None:
    async def test(loop: Loop) -> None:
        client = Client()

        def script(tried: Try) -> None:
            tried.whole(b"now")

        world = World(loop, branch("a"), script=script)
        world.ask(client)
        assert (client.by, client.answer) == ("a", b"now")
        world.still()

    run(test)
