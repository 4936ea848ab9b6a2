"""What becomes of a request whose branch fails, is slow or is left: before and after the first byte."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from .scripted import Client, Loop, Request, Try, World, branch, run, served

TWO = (branch("a", 1), branch("b", 0))
FALLBACK = {"fallback": {"order": ["b"]}}


def two(loop: Loop, policy: dict[str, Any] | None = None, **more: Any) -> World:
    return World(loop, *TWO, policy=FALLBACK | (policy or {}), **more)


@pytest.mark.parametrize(
    ("status", "code"),
    [(500, None), (502, "engine_error"), (503, None), (504, "engine_timeout"), (429, None), (408, None), (409, None),
     (502, "vendor_refused_key"), (429, "insufficient_quota"), (400, "unsupported_parameter"),
     (400, "context_length_exceeded")],
)  # fmt: skip
def test_the_next_one_is_asked(status: int, code: str | None) -> None:
    async def test(loop: Loop) -> None:
        world = two(loop)
        request = world.ask()
        world.tries[0].fail(status, code)
        assert world.asked == ["a", "b"] and not request.client.heard
        world.tries[1].whole(b"yes")
        assert request.client.heard == ["whole"] and request.client.answer == b"yes"
        assert world.marks("b")["fallbacks"] == 1 and world.marks("b")["won"] == 1
        assert world.marks("a")["failed"] == (status >= 500 or status == 429)
        world.still()

    run(test)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 415, 422])
def test_what_is_the_clients_fault_is_the_clients(status: int) -> None:
    async def test(loop: Loop) -> None:
        world = two(loop, {"retry": {"attempts": 3}})
        request = world.ask()
        world.tries[0].fail(status)
        assert request.client.status == status and world.asked == ["a"]
        assert world.marks("a")["failed"] == 0
        world.still()

    run(test)


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_what_a_vendor_says_of_key_and_address_is_the_operators(status: int) -> None:
    async def test(loop: Loop) -> None:
        branches = branch("vendor", vendor=True), branch("own", 0)
        world = World(loop, *branches, policy={"fallback": {"order": ["own"]}, "retry": {"attempts": 2}})
        request = world.ask()
        world.tries[0].fail(status)
        world.tries[1].fail(503)
        loop.now += 1
        assert world.asked == ["vendor", "own"] and world.marks("vendor")["failed"] == 1
        assert request.client.status == 0  # the own one is tried again
        request.leave()
        alone = World(loop, branch("vendor", vendor=True))
        request = alone.ask()
        alone.tries[0].fail(status)
        assert request.client.status == 502  # the client's key is not what is wrong
        world.still()
        alone.still()

    run(test)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_it_is_asked_again_where_that_may_pass(status: int) -> None:
    async def test(loop: Loop) -> None:
        world = two(loop, {"retry": {"attempts": 2, "backoff_s": 0.5}})
        request = world.ask()
        for tried in range(3):
            assert world.asked == ["a"] * (tried + 1)
            world.tries[-1].fail(status)
            await asyncio.sleep(2)
        assert world.asked == ["a", "a", "a", "b"]
        assert world.marks("a")["retries"] == 2 and world.marks("a")["requests"] == 1
        world.tries[-1].fail(status)
        await asyncio.sleep(2)
        world.tries[-1].whole()
        assert request.client.heard == ["whole"] and world.asked == ["a", "a", "a", "b", "b"]
        world.still()

    run(test)


@pytest.mark.parametrize(
    ("status", "code"),
    [(408, None), (409, None), (501, None), (502, "vendor_refused_key"), (502, "vendor_not_found"),
     (503, "vendor_circuit_open"), (429, "insufficient_quota")],
)  # fmt: skip
def test_what_does_not_pass_is_not_asked_again(status: int, code: str | None) -> None:
    async def test(loop: Loop) -> None:
        world = two(loop, {"retry": {"attempts": 2, "backoff_s": 0}})
        world.ask()
        world.tries[0].fail(status, code)
        assert world.asked == ["a", "b"]
        world.tries[1].whole()
        world.still()

    run(test)


@pytest.mark.parametrize("seed", range(5))
def test_the_pause_is_a_random_part_of_what_doubles(seed: int) -> None:
    async def test(loop: Loop) -> None:
        pauses: list[list[float]] = [[], [], [], []]
        for number in range(60):
            world = World(
                loop, branch("a"), policy={"retry": {"attempts": 4, "backoff_s": 0.1}}, seed=100 * seed + number
            )
            request = world.ask()
            while not request.client.over:
                world.live[0].fail(503)
                if not request.client.over:
                    asked, (pause,) = len(world.tries), loop.waits
                    await asyncio.sleep(pause)
                    await asyncio.sleep(0)
                    assert len(world.tries) == asked + 1
                    pauses[asked - 1].append(pause)
            assert len(world.tries) == 5 and request.client.status == 503
            world.still()
        for number, found in enumerate(pauses):
            most = 0.1 * 2**number
            assert max(found) <= most and max(found) > 0.7 * most and min(found) < 0.3 * most

    run(test)


def test_retry_after_is_waited_for_when_it_is_short() -> None:
    async def test(loop: Loop) -> None:
        world = two(loop, {"retry": {"attempts": 5, "backoff_s": 0.1}})
        request = world.ask()
        world.tries[0].fail(429, retry_after_s=2)
        await asyncio.sleep(1.99)
        assert world.asked == ["a"]
        await asyncio.sleep(0.2)
        assert world.asked == ["a", "a"]
        world.tries[1].fail(503, retry_after_s=30)
        assert world.asked == ["a", "a", "b"]
        world.tries[2].fail(429, retry_after_s=30)
        assert request.client.problem is not None and request.client.problem.retry_after_s == 30
        world.still()

    run(test)


@pytest.mark.parametrize("limits", [{"first_token_s": 1}, {"total_s": 1}])
def test_no_pause_goes_beyond_a_limit(limits: dict[str, float]) -> None:
    async def test(loop: Loop) -> None:
        world = two(loop, {"retry": {"attempts": 5}, "limits": limits})
        world.ask()
        world.tries[0].fail(503, retry_after_s=2)
        assert world.asked == ["a", "b"]
        world.tries[1].whole()
        world.still()

    run(test)


def test_the_last_refusal_is_the_clients() -> None:
    async def test(loop: Loop) -> None:
        world = two(loop)
        request = world.ask()
        world.tries[0].fail(502)
        world.tries[1].fail(503)
        assert request.client.heard == ["failed"] and request.client.status == 503
        world.still()

    run(test)


def test_what_the_gateway_itself_refuses_is_no_fault_of_the_branch() -> None:
    async def test(loop: Loop) -> None:
        # Before `start` returns: no branch was asked.
        def script(tried: Try) -> None:
            if tried.branch == "a":
                tried.fail(429)

        world = two(loop, {"retry": {"attempts": 2}}, script=script)
        for _ in range(10):
            world.ask()
            world.tries[-1].whole()
        assert world.asked == ["a", "b"] * 10
        assert world.marks("a")["failed"] == 0 and world.marks("a")["breaker"] == "closed"
        # Later, where it had to be counted first.
        world.script = None
        request = world.ask()
        request.asking.refused = True
        world.tries[-1].fail(429)
        assert world.asked[-2:] == ["a", "b"] and not request.asking.refused
        world.tries[-1].fail(429)  # that one is the branch's
        assert world.marks("a")["failed"] == 0 and world.marks("b")["failed"] == 1
        request.leave()
        world.still()

    run(test)


def test_all_may_fail_at_once() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, *(branch(f"b{number}") for number in range(30)), script=lambda tried: tried.fail(503))
        request = world.ask()
        assert request.client.heard == ["failed"] and len(set(world.asked)) == 30
        world.still()

    run(test)


@pytest.mark.parametrize("status", [400, 429, 502, 503])
@pytest.mark.parametrize("hedge", [False, True])
def test_after_the_first_byte_a_failure_is_the_clients(status: int, hedge: bool) -> None:
    async def test(loop: Loop) -> None:
        policy: dict[str, Any] = {"retry": {"attempts": 3}, "limits": {"first_token_s": 5, "total_s": 50}}
        world = two(loop, policy | ({"hedge": {"after_s": 1}} if hedge else {}))
        request = world.ask(stream=True)
        world.tries[0].begin(b"data: 1\n\n")
        await asyncio.sleep(10)
        world.tries[0].data(b"data: 2\n\n")
        world.tries[0].fail(status)
        assert request.client.heard == ["begin", "data", "data", "failed"] and request.client.status == status
        assert world.asked == ["a"] and world.marks("a")["failed"] == 1
        world.still()

    run(test)


def test_pieces_go_straight_to_the_client() -> None:
    async def test(loop: Loop) -> None:
        world = two(loop)
        request = world.ask(stream=True)
        world.tries[0].begin()
        assert world.tries[0].receiver.data == request.client.data
        world.tries[0].data(b"data: [DONE]\n\n")
        world.tries[0].end()
        assert request.client.answer == b"data: [DONE]\n\n" and request.client.over
        world.still()

    run(test)


@pytest.mark.parametrize("streams", [False, True])
def test_an_answer_that_cannot_be_read_is_a_failure(streams: bool) -> None:
    async def test(loop: Loop) -> None:
        world = two(loop)
        client = Client()
        client.unreadable = True
        world.ask(client, stream=streams)
        tried = world.tries[0]
        if streams:
            tried.begin(b"x")
        with pytest.raises(ValueError, match="no JSON"):
            tried.end() if streams else tried.whole()
        tried.over = False
        tried.fail(502)  # as whoever asked the engine then does
        assert client.heard[-1] == "failed" and client.status == 502 and world.asked == ["a"]
        assert world.marks("a")["failed"] == 1
        world.still()

    run(test)


def test_who_does_not_begin_in_time_is_left_for_the_next() -> None:
    async def test(loop: Loop) -> None:
        world = two(loop, {"limits": {"first_token_s": 3}})
        request = world.ask(stream=True)
        await asyncio.sleep(2.9)
        assert world.asked == ["a"]
        await asyncio.sleep(0.2)
        assert world.asked == ["a", "b"] and world.tries[0].cancelled and world.marks("a")["failed"] == 1
        world.tries[1].begin(b"x")
        await asyncio.sleep(20)
        world.tries[1].end()
        assert request.client.heard == ["begin", "data", "end"]
        request = world.ask()
        await asyncio.sleep(6.1)
        assert request.client.status == 504 and request.client.problem.code == "engine_timeout"  # type: ignore[union-attr]
        world.still()

    run(test)


def test_the_limit_counts_over_the_tries_on_a_branch() -> None:
    async def test(loop: Loop) -> None:
        world = two(loop, {"limits": {"first_token_s": 3}, "retry": {"attempts": 2, "backoff_s": 0}})
        world.ask()
        await asyncio.sleep(2)
        world.tries[0].fail()
        await asyncio.sleep(0.5)
        assert world.asked == ["a", "a"]
        await asyncio.sleep(0.6)
        assert world.asked == ["a", "a", "b"] and world.tries[1].cancelled
        world.tries[2].whole()
        world.still()

    run(test)


@pytest.mark.parametrize("begun", [False, True])
def test_the_whole_may_take_so_long(begun: bool) -> None:
    async def test(loop: Loop) -> None:
        world = two(loop, {"limits": {"total_s": 10}, "hedge": {"after_s": 5}})
        request = world.ask(stream=True)
        if begun:
            world.tries[0].begin(b'data: {"cut')
        await asyncio.sleep(10.1)
        assert request.client.status == 504
        assert all(tried.cancelled for tried in world.tries)
        if begun:
            # The event of the error is one of its own.
            assert request.client.heard == ["begin", "data", "data", "failed"]
            assert request.client.answer.endswith(b"\n\n")
            world.tries[0].receiver.data(b"late")  # nobody hears it
        else:
            assert request.client.heard == ["failed"] and world.asked == ["a", "b"]
        world.still()

    run(test)


@pytest.mark.parametrize("first", ["a", "b"])
@pytest.mark.parametrize("streams", [False, True])
def test_of_two_that_are_asked_the_first_to_begin_wins(first: str, streams: bool) -> None:
    async def test(loop: Loop) -> None:
        world = two(loop, {"hedge": {"after_s": 2}})
        request = world.ask(stream=streams)
        await asyncio.sleep(1.9)
        assert world.asked == ["a"]
        await asyncio.sleep(0.2)
        assert world.asked == ["a", "b"] and world.marks("b")["hedges"] == 1 and not world.tries[0].over
        winner, loser = world.tries if first == "a" else reversed(world.tries)
        if streams:
            winner.begin(b"x")
            assert loser.cancelled
            winner.end()
        else:
            winner.whole(b"x")
            assert loser.cancelled
        assert request.client.by == first and request.client.answer == b"x"
        assert world.marks(first)["won"] == 1 and world.marks(loser.branch)["failed"] == 0
        world.still()

    run(test)


def test_the_other_may_answer_at_the_same_time() -> None:
    async def test(loop: Loop) -> None:
        world = two(loop, {"hedge": {"after_s": 1}})
        request = world.ask(stream=True)
        await asyncio.sleep(1.1)
        one, other = world.tries
        one.begin(b"x")
        # It was cancelled within the turn in which its answer came: whatever it still says is heard by nobody.
        route, receiver = other.route, other.receiver
        receiver.begin(route)
        receiver.data(b"y")
        receiver.end()
        receiver.failed(None)  # type: ignore[arg-type]
        receiver.whole(b"y", route)
        one.end()
        assert request.client.answer == b"x" and request.client.heard == ["begin", "data", "end"]
        world.still()

    run(test)


def test_a_hedge_that_answers_before_it_returns() -> None:
    async def test(loop: Loop) -> None:
        world = two(
            loop, {"hedge": {"after_s": 1}}, script=lambda tried: tried.whole() if tried.branch == "b" else None
        )
        request = world.ask()
        await asyncio.sleep(1.1)
        assert request.client.by == "b" and world.tries[0].cancelled
        world.still()

    run(test)


def test_one_of_two_that_fails_leaves_the_other() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, branch("a"), branch("b", 0), branch("c", 0),
                      policy={"fallback": {"order": ["b", "c"]}, "hedge": {"after_s": 1}})  # fmt: skip
        request = world.ask()
        await asyncio.sleep(1.1)
        world.tries[0].fail()
        assert world.asked == ["a", "b"] and not request.client.heard
        await asyncio.sleep(1.1)
        assert world.asked == ["a", "b", "c"]  # the one that is left is slow as well
        world.tries[1].fail()
        world.tries[2].fail()
        assert request.client.heard == ["failed"]
        world.still()

    run(test)


def test_one_of_two_that_says_it_is_the_clients_fault_ends_both() -> None:
    async def test(loop: Loop) -> None:
        world = two(loop, {"hedge": {"after_s": 1}})
        request = world.ask()
        await asyncio.sleep(1.1)
        world.tries[1].fail(400)
        assert request.client.status == 400 and world.tries[0].cancelled
        world.still()

    run(test)


def test_no_hedge_where_nobody_else_is_there_or_it_has_begun() -> None:
    async def test(loop: Loop) -> None:
        world = World(loop, branch("a"), branch("b", 0), policy={"hedge": {"after_s": 1}})
        request = world.ask()
        await asyncio.sleep(5)
        assert world.asked == ["a"]
        request.leave()
        world = two(loop, {"hedge": {"after_s": 1}})
        world.ask(stream=True)
        world.tries[0].begin()
        await asyncio.sleep(5)
        assert world.asked == ["a"]
        world.tries[0].end()
        world.still()

    run(test)


LONG = {"retry": {"attempts": 2, "backoff_s": 60}, "limits": {"first_token_s": 900, "total_s": 1_000}}


async def _asked(world: World) -> Request:
    return world.ask(stream=True)


async def _backing_off(world: World) -> Request:
    request = world.ask(stream=True)
    world.tries[0].fail(503)
    assert not world.live
    return request


async def _fallen_back(world: World) -> Request:
    request = world.ask(stream=True)
    world.tries[0].fail(409)
    return request


async def _hedged(world: World) -> Request:
    request = world.ask(stream=True)
    await asyncio.sleep(31)
    assert world.asked == ["a", "b"] and len(world.live) == 3  # the copy too
    return request


async def _one_of_two_backing_off(world: World) -> Request:
    request = await _hedged(world)
    world.tries[0].fail(503)
    return request


async def _begun(world: World) -> Request:
    request = await _hedged(world)
    world.tries[1].begin(b"x")
    return request


@pytest.mark.parametrize("stage", [_asked, _backing_off, _fallen_back, _hedged, _one_of_two_backing_off, _begun])
def test_a_client_that_leaves_leaves_nothing_under_way(stage: Any) -> None:
    async def test(loop: Loop) -> None:
        shadow = {"shadow": {"branch": "c", "share": 1}}
        world = World(loop, *TWO, branch("c", 0), policy=FALLBACK | LONG | {"hedge": {"after_s": 30}} | shadow)
        request = await stage(world)
        assert world.steerings.under_way == 1
        await asyncio.sleep(0)
        asked = len(world.tries)
        request.leave()
        world.still()
        assert request.asked is not None
        request.asked.cancel()  # once more changes nothing
        await asyncio.sleep(2_000)
        assert len(world.tries) == asked
        world.still()

    run(test)


def test_a_client_that_leaves_while_a_branch_is_being_asked() -> None:
    async def test(loop: Loop) -> None:
        requests: list[Request] = []

        def script(tried: Try) -> None:
            if tried.branch == "b":
                requests[0].leave()

        world = two(loop, script=script)
        requests.append(world.ask())
        world.tries[0].fail()
        assert world.tries[1].cancelled
        world.still()

    run(test)


def test_a_slow_client_holds_back_who_answers_and_nobody_else() -> None:
    async def test(loop: Loop) -> None:
        world = two(loop, {"hedge": {"after_s": 1}})
        request = world.ask(stream=True)
        assert request.asked is not None
        request.asked.pause()
        await asyncio.sleep(1.1)
        assert not any(tried.paused for tried in world.tries)
        world.tries[1].begin()
        assert world.tries[1].paused
        request.asked.resume()
        assert not world.tries[1].paused
        request.asked.pause()
        assert world.tries[1].paused
        world.tries[1].end()
        request.asked.resume()
        world.still()

    run(test)


def test_a_branch_that_begins_before_it_returns_is_held_back_too() -> None:
    async def test(loop: Loop) -> None:
        requests: list[Request] = []

        def script(tried: Try) -> None:
            if tried.branch == "b":
                tried.begin()

        world = two(loop, script=script)
        requests.append(world.ask(stream=True))
        assert requests[0].asked is not None
        requests[0].asked.pause()
        world.tries[0].fail()
        assert world.tries[1].paused
        world.tries[1].end()
        world.still()

    run(test)


def test_without_limits_no_timer_is_set() -> None:
    async def test(loop: Loop) -> None:
        world = two(loop)
        world.ask()
        assert loop.timers == 0
        world.tries[0].whole()
        world.served = served()
        world.still()

    run(test)
