"""What is kept of answers on their way, and what is not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from pressroom.gateway.cache import Cache, Hit, Key
from pressroom.gateway.problems import Problem, server_error
from pressroom.gateway.protocols.openai import EMBEDDING

from .asking import HI, Heard, answer, chat, chunk, hit, look, missed, route, stream, streamed, table, usage_chunk


def _kept(cache: Cache) -> bool:
    return isinstance(look(cache, chat()), Hit)


@pytest.mark.parametrize("cut", range(0, len(HI), 3))
def test_a_stream_that_is_cut_is_not_kept(cut: int) -> None:
    for ending in ("nothing", "failed", "end"):
        cache = Cache(table())
        heard = Heard()
        recording = cache.recording(missed(cache, chat(stream=True)), heard)
        recording.begin(route())
        for start in range(0, cut, 11):
            recording.data(HI[start : min(start + 11, cut)])
        if ending == "failed":
            recording.failed(server_error(502, "it died"))
        elif ending == "end" and HI[cut:].strip():  # without its last newlines it is whole
            recording.end()
        assert not _kept(cache)
        assert heard.stream == HI[:cut]


@pytest.mark.parametrize("cut", range(0, len(answer()), 7))
def test_a_whole_answer_that_is_cut_is_not_kept(cut: int) -> None:
    cache = Cache(table())
    heard = Heard()
    cache.recording(missed(cache, chat()), heard).whole(answer()[:cut], route())
    assert heard.body == answer()[:cut] and not _kept(cache)


def test_a_failure_is_passed_on_and_not_kept() -> None:
    cache = Cache(table())
    heard = Heard()
    problem = Problem(400, "no")
    cache.recording(missed(cache, chat()), heard).failed(problem)
    assert heard.problem is problem and not _kept(cache)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b'{"choices": []}',
        b'{"choices": {}}',
        b'{"choices": [null]}',
        answer(error={"message": "overloaded"}),
        answer(finish="content_filter"),
        answer(finish="error"),
        answer(choices=[{"index": 0, "finish_reason": None, "message": {"content": "a"}}]),
        answer(choices=[{"index": 0, "finish_reason": ["stop"], "message": {"content": "a"}}]),
        answer(choices=[{"index": 0, "finish_reason": "stop"}]),
        answer(choices=[{"index": i, "finish_reason": "stop", "message": {"content": "a"}} for i in range(2)]),
        answer("x" * (1 << 20)),
    ],
)
def test_what_is_not_a_whole_answer_is_passed_on_and_not_kept(body: bytes) -> None:
    cache = Cache(table())
    heard = Heard()
    cache.recording(missed(cache, chat()), heard).whole(body, route())
    assert heard.body == body and not _kept(cache)
    assert cache.snapshot()["m"].refused == 1


@pytest.mark.parametrize(
    "pieces",
    [
        [chunk({"content": "a"})],
        [chunk({"content": "a"}, "content_filter")],
        [chunk({"content": "a"}), {"error": {"message": "it died"}}, chunk({}, "stop")],
        [
            chunk({"content": "a"}),
            chunk({}, "stop", prompt_progress={"processed": 1}),
            chunk({}, "stop", prompt_progress={}),
        ],
        [chunk({"content": "a", "audio": {"data": "x"}}), chunk({}, "stop")],
        [chunk({"content": ["a"]}), chunk({}, "stop")],
        [chunk({"role": "tool", "content": "a"}), chunk({}, "stop")],
        [chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}), chunk({}, "tool_calls")],
        [chunk({"content": "a"}, index=1), chunk({}, "stop", index=1)],
        [chunk({"content": "a"}), chunk({}, "stop"), chunk({"content": "b"}, index=1), chunk({}, "stop", index=1)],
        [chunk({"content": "a"}, citations=["x"]), chunk({}, "stop", citations=["x", "y"])],
        [],
        [{"choices": [{"index": "0", "delta": {"content": "a"}, "finish_reason": "stop"}]}],
        [{"choices": [{"index": [], "delta": {}, "finish_reason": "stop"}]}],
        [{"choices": 3}],
        [{"choices": [3]}],
        [{"choices": [{"delta": 3}]}],
        ["text"],
        [3],
    ],
)
def test_a_stream_that_is_not_understood_is_passed_on_and_not_kept(pieces: list[Any]) -> None:
    cache = Cache(table())
    data = streamed(*pieces)
    heard = stream(cache, missed(cache, chat(stream=True)), data)
    assert heard.stream == data and not _kept(cache)
    assert cache.snapshot()["m"].refused == 1


@pytest.mark.parametrize(
    "broken",
    [
        HI + HI,
        HI.replace(b'"content": "hi"', b'"content": "hi'),
        HI.replace(b"data: [DONE]", b"data: [DONE"),
        HI.replace(b"hi", b"\xff\xfe"),
    ],
)
def test_a_broken_stream_is_not_kept(broken: bytes) -> None:
    cache = Cache(table())
    stream(cache, missed(cache, chat(stream=True)), broken)
    assert not _kept(cache)


def test_a_stream_over_the_limit_is_let_go_at_once() -> None:
    cache = Cache(table())
    recording = cache.recording(missed(cache, chat(stream=True)), Heard())
    recording.begin(route())
    for _ in range(20):
        recording.data(b"data: " + b"x" * 100_000 + b"\n\n")
    assert recording._pieces is None
    recording.end()
    assert not _kept(cache) and cache.snapshot()["m"].refused == 1


class _Picky(Heard):
    """A receiver that finds at the end that it cannot read the answer."""

    def whole(self, body: bytes, route: object) -> None:
        raise ValueError("it cannot be read")

    def end(self) -> None:
        raise ValueError("it cannot be read")


def test_what_its_receiver_cannot_read_is_not_kept() -> None:
    cache = Cache(table())
    with pytest.raises(ValueError, match="cannot be read"):
        cache.recording(missed(cache, chat()), _Picky()).whole(answer(), route())
    recording = cache.recording(missed(cache, chat()), _Picky())
    recording.begin(route())
    recording.data(HI)
    with pytest.raises(ValueError, match="cannot be read"):
        recording.end()
    recording.failed(server_error(502, "it cannot be read"))
    assert not _kept(cache)


def test_a_hit_is_not_kept_again() -> None:
    cache, other = Cache(table()), Cache(table())
    stream(cache, missed(cache, chat()))
    found = look(cache, chat())
    assert isinstance(found, Hit)
    found.give(other.recording(missed(other, chat()), Heard()))
    assert not _kept(other)


def test_embeddings_must_have_vectors() -> None:
    fields = {"model": "m", "input": "x"}
    for body in (b'{"data": []}', b'{"data": [{"index": 0}]}', b'{"data": [{"index": 0, "embedding": []}]}'):
        cache = Cache(table())
        cache.recording(missed(cache, fields, endpoint=EMBEDDING), Heard()).whole(body, route())
        assert isinstance(look(cache, fields, endpoint=EMBEDDING), Key)


def test_long_streams_are_put_together_over_several_turns_of_the_loop() -> None:
    pieces = [chunk({"content": f" {number}"}) for number in range(1_500)]
    data = streamed(*pieces, chunk({}, "stop"), usage_chunk())
    cache = Cache(table())
    turns = 0

    async def run() -> None:
        nonlocal turns
        stream(cache, missed(cache, chat(stream=True)), data, size=10_000)
        while not cache.snapshot()["m"].stores and turns < 100:
            turns += 1
            await asyncio.sleep(0)

    asyncio.run(run())
    assert turns > 2
    assert hit(cache, chat()).record["choices"][0]["message"]["content"].endswith(" 1499")
    assert cache._pending == 0


def test_a_deployment_forgotten_meanwhile() -> None:
    cache = Cache(table())
    key = missed(cache, chat())
    cache.forget("m")
    cache.recording(key, Heard()).whole(answer(), route())
    cache.recording(key, Heard()).whole(b"", route())
    assert cache.snapshot() == {} and cache._bytes == 0


def test_small_answers_take_little_memory() -> None:
    """What is kept is not the memory that a serialiser wrote it in."""
    import tracemalloc

    cache = Cache(table())
    body = answer("word " * 100)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(2_000):
            cache.keep(missed(cache, chat(str(number))), body, route())
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    said = cache.snapshot()["m"].bytes
    assert 0.5 * said < taken < 1.1 * said


def _deep(depth: int) -> bytes:
    return b'{"choices": ' + b"[" * depth + b"]" * depth + b"}"


def _many(count: int) -> bytes:
    choice = {"index": 0, "finish_reason": "stop", "message": {"content": "a"}}
    return json.dumps({"choices": [choice] * count}).encode()


@pytest.mark.parametrize("make", [lambda: _deep(900), lambda: _deep(200_000), lambda: _many(5_000)])
def test_hostile_answers(make: Callable[[], bytes]) -> None:
    cache = Cache(table())
    body = make()
    cache.recording(missed(cache, chat()), Heard()).whole(body, route())
    stream(cache, missed(cache, chat(stream=True)), b"data: " + body + b"\n\ndata: [DONE]\n\n", size=100_000)
    assert not _kept(cache)
