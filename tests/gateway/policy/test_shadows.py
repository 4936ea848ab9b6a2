"""Copies for comparison: of a share of the requests, bounded, compared, and never sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pressroom.gateway.policy._shadows import MOST
from pressroom.gateway.protocols.openai import COMPLETION, EMBEDDING

from .scripted import PERSONAL, Loop, Try, World, answer, branch, run, stream


def with_shadow(loop: Loop, share: float = 1, policy: dict[str, Any] | None = None, **more: Any) -> World:
    shadow = {"shadow": {"branch": "new", "share": share}}
    return World(loop, branch("old"), branch("new", 0), policy=shadow | (policy or {}), **more)


async def both(world: World, **asked: Any) -> tuple[Try, Try]:
    """Ask, and the tries of the request and of its copy."""
    world.tries.clear()
    world.ask(**asked)
    await asyncio.sleep(0)
    main, copy = world.tries
    assert (main.branch, main.shadow, copy.branch, copy.shadow) == ("old", False, "new", True)
    return main, copy


Say = Callable[[Try, str], None]


def whole(tried: Try, text: str) -> None:
    tried.whole(answer(text))


def streamed(tried: Try, text: str) -> None:
    tried.begin(*stream(*text))
    tried.end()


@pytest.mark.parametrize("copy_first", [False, True])
@pytest.mark.parametrize(("main_says", "copy_says"), [(whole, whole), (streamed, streamed), (streamed, whole)])
def test_answers_are_compared(copy_first: bool, main_says: Say, copy_says: Say) -> None:
    async def test(loop: Loop) -> None:
        world = with_shadow(loop)
        for main_text, copy_text in (("same", "same"), ("four", "12345678"), ("", "")):
            main, copy = await both(world, stream=main_says is streamed)
            if copy_first:
                copy_says(copy, copy_text)
                await asyncio.sleep(2)
                main_says(main, main_text)
            else:
                main_says(main, main_text)
                await asyncio.sleep(2)
                copy_says(copy, copy_text)
            world.still()
        marks = world.marks("new")
        assert (marks["shadows"], marks["compared"], marks["equal"], marks["shadows_failed"]) == (3, 3, 2, 0)
        assert marks["requests"] == 0 and marks["won"] == 0
        first, second, third = world.steerings.compared()["m"]
        assert first["equal"] and first["length_ratio"] == 1 and (first["branch"], first["against"]) == ("new", "old")
        assert not second["equal"] and second["length_ratio"] == 2
        assert third["equal"] and third["length_ratio"] == 1
        late, soon = ("against_seconds", "seconds") if copy_first else ("seconds", "against_seconds")
        assert first[late] >= 2 > first[soon]
        assert "same" not in str(first)

    run(test)


def test_the_calls_of_tools_are_compared() -> None:
    async def test(loop: Loop) -> None:
        world = with_shadow(loop)
        call = b'{"function":{"name":"f","arguments":"%b"}}'
        body = b'{"choices":[{"index":0,"message":{"content":null,"tool_calls":[' + call + b"]}}]}"
        for one, other in ((b"{}", b"{}"), (b"{}", b"[]")):
            main, copy = await both(world)
            main.whole(body % one)
            copy.whole(body % other)
        assert (world.marks("new")["compared"], world.marks("new")["equal"]) == (2, 1)

    run(test)


def test_completions_are_compared_and_vectors_are_not_asked_for() -> None:
    async def test(loop: Loop) -> None:
        world = with_shadow(loop)
        main, copy = await both(world, endpoint=COMPLETION, prompt="p")
        main.whole(b'{"choices":[{"index":0,"text":"a"}]}')
        copy.whole(b'{"choices":[{"index":0,"text":"a"}]}')
        assert world.marks("new")["equal"] == 1
        world.tries.clear()
        world.ask(endpoint=EMBEDDING, input="x")
        await asyncio.sleep(0)
        assert len(world.tries) == 1

    run(test)


def test_a_share_of_the_requests() -> None:
    async def test(loop: Loop) -> None:
        world = with_shadow(loop, 0.1)
        for _ in range(1_000):
            world.ask()
            await asyncio.sleep(0)
            for tried in world.live:
                tried.whole(answer("x"))
        assert 60 < world.marks("new")["compared"] < 140
        world.still()

    run(test)


def test_no_more_than_so_many_at_once_and_none_when_there_is_much_to_do() -> None:
    async def test(loop: Loop) -> None:
        world = with_shadow(loop)
        requests = [world.ask() for _ in range(MOST + 10)]
        await asyncio.sleep(0)
        assert world.steerings.shadows_under_way == MOST and world.marks("new")["shadows_skipped"] == 10
        world.ask()
        assert world.marks("new")["shadows_skipped"] == 11
        for tried in world.live:
            tried.whole(answer("x"))
        assert all(request.client.heard == ["whole"] for request in requests)
        world.still()
        asked = len(world.tries)
        world.ask()
        loop.now += 1  # the loop comes to it late
        await asyncio.sleep(0)
        assert len(world.tries) == asked + 1 and world.marks("new")["shadows_skipped"] == 12
        world.tries[-1].whole(answer("x"))
        world.still()

    run(test)


def test_a_copy_that_fails_is_nobodys_problem() -> None:
    async def test(loop: Loop) -> None:
        world = with_shadow(loop)
        for _ in range(6):
            main, copy = await both(world)
            copy.fail(503)
            main.whole(answer("x"))
            world.still()
        assert world.marks("new")["shadows_failed"] == 6 and world.marks("new")["breaker"] == "closed"
        assert world.steerings.compared()["m"][-1]["failed"] == "503"
        # Money that is not there for the copy says nothing of the request.
        main, copy = await both(world)
        asking = world.requests[-1].asking
        asking.refused = True
        copy.fail(429, "insufficient_quota")
        assert not asking.refused
        main.whole()

    run(test)


def test_a_request_that_is_not_answered_needs_no_comparison() -> None:
    async def test(loop: Loop) -> None:
        world = with_shadow(loop)
        main, copy = await both(world)
        main.fail(503)
        assert copy.cancelled and world.marks("new")["compared"] == 0
        world.still()
        main, copy = await both(world)
        copy.whole(answer("x"))
        world.requests[-1].leave()
        assert world.marks("new")["compared"] == 0
        world.still()

    run(test)


def test_a_copy_that_does_not_end_is_ended() -> None:
    async def test(loop: Loop) -> None:
        world = with_shadow(loop, policy={"limits": {"total_s": 5}})
        main, copy = await both(world)
        main.whole(answer("x"))
        await asyncio.sleep(4)
        assert not copy.over
        await asyncio.sleep(2)
        assert copy.cancelled and world.steerings.compared()["m"][-1]["failed"] == "timeout"
        world.still()

    run(test)


def test_what_cannot_be_read_or_is_too_long_is_not_compared() -> None:
    async def test(loop: Loop) -> None:
        world = with_shadow(loop)
        for text in (b"{", b"[]", answer("x" * 300_000)):
            main, copy = await both(world)
            main.whole(answer("x"))
            copy.whole(text)
            world.still()
        main, copy = await both(world, stream=True)
        main.begin(*stream(*["x" * 1_000] * 300))
        main.end()
        copy.whole(answer("x"))
        assert world.marks("new")["shadows_failed"] == 4 and world.marks("new")["compared"] == 0
        assert len(world.requests[-1].client.answer) > 300_000

    run(test)


def test_the_branch_that_answers_is_not_compared_with_itself() -> None:
    async def test(loop: Loop) -> None:
        world = with_shadow(loop, policy={"fallback": {"order": ["new"]}, "split": {"key:k": "new"}})
        world.ask(key="k")
        await asyncio.sleep(0)
        assert [tried.shadow for tried in world.tries] == [False]
        world.tries[0].whole()
        main, copy = await both(world)
        main.fail(503)
        world.tries[-1].whole(answer("x"))
        assert copy.cancelled and world.requests[-1].client.by == "new" and world.marks("new")["compared"] == 0
        world.still()

    run(test)


def test_a_branch_that_is_not_ready_or_fails_gets_no_copies() -> None:
    async def test(loop: Loop) -> None:
        world = with_shadow(loop)
        world.served = World(loop, branch("old"), branch("new", 0, ready=False)).served
        world.ask()
        await asyncio.sleep(0)
        assert len(world.tries) == 1 and world.marks("new")["shadows_skipped"] == 1
        world.served = World(loop, branch("old")).served
        world.ask()
        await asyncio.sleep(0)
        assert len(world.tries) == 2

    run(test)


def test_a_branch_for_copies_is_not_asked_where_those_that_may_be_have_no_share() -> None:
    async def test(loop: Loop) -> None:
        shadow = {"shadow": {"branch": "new", "share": 0.01}}
        world = World(loop, branch("vendor", vendor=True), branch("new", 0), branch("own", 0), policy=shadow)
        for _ in range(30):
            world.ask(messages=[{"role": "user", "content": PERSONAL}])
        assert set(world.asked) == {"own"}

    run(test)


def test_what_is_remembered_is_bounded() -> None:
    async def test(loop: Loop) -> None:
        world = with_shadow(loop)
        for _ in range(300):
            main, copy = await both(world)
            main.whole(answer("x"))
            copy.whole(answer("x"))
        assert len(world.steerings.compared()["m"]) == 256 and world.marks("new")["compared"] == 300

    run(test)
