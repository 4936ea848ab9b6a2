"""The load generator: what it sends, what it notes, and the arithmetic of what it says."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from pressroom.gateway._response import Head
from pressroom.gateway.bench import Bench, BenchError, BenchSettings, Round, Slo, Spread, _load
from pressroom.gateway.bench._asks import Ask
from pressroom.gateway.bench._prompts import Prompts
from pressroom.gateway.bench._recording import Recording, Sample
from pressroom.gateway.upstream import Failure
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import HEAD, STREAM, Echoes, Script, chunk, route_to

# Only ends a test that fails.
_PATIENCE_S = 60.0


def bench(url: str, model: str = "m", **more: Any) -> list[Round]:
    async def work() -> list[Round]:
        async with asyncio.timeout(_PATIENCE_S):
            return await Bench(url, model, BenchSettings(**more)).run()

    return uvloop.run(work())


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200))
def test_percentiles_are_numpy_s(values: list[float]) -> None:
    spread = Spread.of(values)
    assert spread is not None
    expected = np.percentile(values, [50, 90, 99])
    assert np.allclose([spread.p50, spread.p90, spread.p99], expected, rtol=1e-12, atol=1e-9)
    assert np.isclose(spread.mean, np.mean(values)) and spread.highest == max(values)


def test_nothing_measured_has_no_spread() -> None:
    assert Spread.of([]) is None


def test_what_is_said_of_a_round_is_what_numpy_says_of_its_samples(
    echo: Echoes, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Recording] = []

    class Kept(Recording):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            kept.append(self)

    monkeypatch.setattr(_load, "Recording", Kept)
    with GatewayThread(route_to(echo(delay_s=0.001, first_delay_s=0.002).port)) as gateway:
        [one] = bench(gateway.url, clients=(4,), requests=60, tokens=8, prompt_tokens=20)
    [recording] = kept
    for sample, spread in (
        (recording.ttft, one.ttft_ms),
        (recording.itl, one.itl_ms),
        (recording.tpot, one.tpot_ms),
        (recording.e2e, one.e2e_ms),
    ):
        values = np.asarray(sample.values) * 1000
        assert spread is not None and len(values) == 60 * (7 if sample is recording.itl else 1)
        assert np.allclose([spread.p50, spread.p90, spread.p99], np.percentile(values, [50, 90, 99]))
        assert np.isclose(spread.mean, values.mean())
    assert one.requests == 60 and one.output_tokens == 8 and one.prompt_tokens == 20
    assert np.isclose(one.output_tokens_per_s, 60 * 8 / one.seconds)
    assert np.isclose(one.total_tokens_per_s, 60 * 28 / one.seconds)
    assert np.isclose(one.requests_per_s, 60 / one.seconds)
    assert one.errors == {} and one.unfinished == 0 and not one.interrupted


def test_times_are_those_of_the_engine(echo: Echoes) -> None:
    with GatewayThread(route_to(echo(delay_s=0.02, first_delay_s=0.1).port)) as gateway:
        [one] = bench(gateway.url, clients=(2,), requests=4, tokens=5, prompt_tokens=20)
    assert one.ttft_ms is not None and one.itl_ms is not None and one.tpot_ms is not None and one.e2e_ms is not None
    # Never faster than the engine; slower only as the machine is busy. Timers may ring a moment early.
    assert one.ttft_ms.p50 >= 99 and one.e2e_ms.p50 >= 99 + 4 * 19
    assert one.itl_ms.mean >= 19 and one.tpot_ms.mean >= 19


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_exactly_what_was_asked_for_is_sent(echo: Echoes, endpoint: str, stream: bool) -> None:
    engine = echo()
    with GatewayThread(route_to(engine.port)) as gateway:
        settings = {"endpoint": endpoint, "stream": stream, "prompt_tokens": 30, "tokens": 6}
        first, second = bench(gateway.url, clients=(1, 3), requests=10, **settings)
    assert (first.clients, second.clients) == (1, 3)
    # Two first ones that find how long prompts must be, one a client to warm up, and then those that count.
    assert engine.requests == 2 + (1 + 10) + (3 + 10)
    for one in (first, second):
        assert (one.requests, one.prompt_tokens, one.output_tokens) == (10, 30, 6)
        assert (one.ttft_ms is not None) == stream and one.e2e_ms is not None
        assert one.output_tokens_per_s == pytest.approx(60 / one.seconds)


def test_a_round_of_seconds_takes_about_so_long_and_waits_for_what_it_began(echo: Echoes) -> None:
    engine = echo(first_delay_s=0.3)
    with GatewayThread(route_to(engine.port)) as gateway:
        [one] = bench(gateway.url, clients=(3,), seconds=0.5, tokens=4, prompt_tokens=10)
    assert one.seconds >= 0.5 and engine.cancelled == 0
    assert one.requests == 6, "those that were begun in the second half ended after it, and count"
    assert one.requests_per_s == pytest.approx(3 / one.seconds)
    assert one.e2e_ms is not None and one.e2e_ms.p50 >= 299


def prompts_of(**more: Any) -> list[str]:
    prompts = Prompts(**{"model": "m", "endpoint": "completions", "seed": 1, "same_prefix": False, **more})
    prompts.words = 40
    return [json.loads(prompts.body(b'"max_tokens":1'))["prompt"] for _ in range(200)]


def test_no_two_prompts_begin_alike() -> None:
    texts = prompts_of()
    assert all(len(text.split()) == 40 for text in texts)
    assert len({" ".join(text.split()[:8]) for text in texts}) == 200
    assert texts == prompts_of() != prompts_of(seed=2)


def test_with_a_shared_prefix_three_quarters_are_alike() -> None:
    texts = [text.split() for text in prompts_of(same_prefix=True)]
    assert len({" ".join(words[:30]) for words in texts}) == 1
    assert len({" ".join(words[30:]) for words in texts}) == 200
    assert all(len(words) == 40 for words in texts)


def test_the_body_of_a_chat_is_json_whatever_the_name_of_the_model() -> None:
    made = Prompts(model='a/"b"\\é', endpoint="chat", seed=0, same_prefix=False)
    body = json.loads(made.body(b'"max_tokens":1'))
    assert body["model"] == 'a/"b"\\é' and body["messages"][0]["role"] == "user" and body["max_tokens"] == 1


def heard(*parts: bytes, head: bytes = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream") -> Ask:
    ended: list[Ask] = []
    ask = Ask(ended.append)
    ask.on_head(Head(head))
    for part in parts:
        ask.on_data(part)
    ask.on_end()
    assert ended == [ask]
    return ask


EVENTS = (
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":""}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"say \\"content\\":\\"x\\""}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content": " two"}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
    b"data: [DONE]\n\n"
)


def test_pieces_are_counted_wherever_they_are_cut() -> None:
    for at in range(len(EVENTS)):
        ask = heard(EVENTS[:at], EVENTS[at:])
        assert (len(ask.times), ask.prompt, ask.output, ask.cached) == (2, 9, 2, 4) and ask.error is None
    assert len(heard(*(EVENTS[at : at + 1] for at in range(len(EVENTS)))).times) == 2


def test_a_stream_that_ends_too_early_is_an_error() -> None:
    cut = EVENTS.removesuffix(b"data: [DONE]\n\n")
    assert heard(cut).error == ("stream", "it ended before its time")
    broken = cut + b'data: {"error":{"message":"the engine died","type":"server_error","code":"engine_error"}}\n\n'
    assert heard(broken).error == ("stream engine_error", "the engine died")


def test_refusals_are_sorted_by_their_code() -> None:
    head = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json"
    refused = heard(b'{"error":{"message":"it sta', b'rts","code":"model_not_ready"}}', head=head)
    assert refused.error == ("503 model_not_ready", "it starts")
    assert heard(b"<html>", head=head).error == ("503", "<html>")


def asked(began: float, *times: float, ended: float, prompt: int = 10, output: int = 0, error: Any = None) -> Ask:
    ask = Ask(lambda _: None)
    ask.began, ask.times, ask.ended, ask.error = began, list(times), ended, error
    ask.prompt, ask.output = prompt, output
    return ask


def test_throughput_is_of_the_round_and_latency_of_all_that_began_in_it() -> None:
    recording = Recording(100.0, Slo(ttft=1500, e2e=3000))
    recording.add(asked(100.0, 101.0, 102.0, ended=102.5, output=4))  # two tokens a piece
    recording.add(asked(100.0, 102.0, 103.0, ended=103.0, output=4))  # its first token came late
    recording.add(asked(100.0, ended=100.1, error=("503", "first")))
    recording.add(asked(100.1, ended=100.2, error=("503", "second")))
    recording.close(110.0)
    recording.add(asked(109.0, 109.5, 111.0, ended=112.0, output=4))  # half of it came later
    recording.add_unfinished(asked(109.0, 109.9, 200.0, ended=0.0))
    one = recording.figures(clients=2, busy=0.5, unfinished=1, interrupted=False)
    assert one.seconds == 10 and one.requests == 3 and one.requests_per_s == 0.2
    assert one.output_tokens_per_s == pytest.approx(2 * (2 + 2 + 1 + 1) / 10)
    assert one.total_tokens_per_s == pytest.approx(one.output_tokens_per_s + 2)
    assert one.goodput_per_s == 0.1
    assert one.errors == {"503": (2, "first")} and recording.ended == 5
    assert one.ttft_ms is not None and one.tpot_ms is not None and one.e2e_ms is not None
    assert one.e2e_ms.highest == 3000 and one.ttft_ms.mean == pytest.approx((1000 + 2000 + 500) / 3)
    assert one.tpot_ms.mean == pytest.approx((1000 / 3 + 1000 / 3 + 500) / 3)
    assert json.loads(json.dumps(one.as_dict()))["errors"] == {"503": {"count": 2, "first": "first"}}


def test_a_sample_is_bounded_and_fair() -> None:
    sample = Sample(1000)
    values = list(range(20_000))
    random.Random(0).shuffle(values)
    for value in sorted(values):
        sample.add(float(value))
    assert len(sample.values) == 1000
    assert abs(float(np.mean(sample.values)) - 9999.5) < 4 * (20_000 / 12**0.5) / 1000**0.5


def test_a_deployment_that_does_not_exist_is_said_in_the_gateway_s_words(echo: Echoes) -> None:
    with GatewayThread(route_to(echo().port)) as gateway, pytest.raises(BenchError, match="nonesuch") as refused:
        bench(gateway.url, "nonesuch", requests=1)
    assert refused.value.facts["reason"].startswith("404")


def test_nobody_there_is_said() -> None:
    with pytest.raises(BenchError, match=r"127\.0\.0\.1:1"):
        bench("http://127.0.0.1:1", requests=1)


def whole(connected: socket.socket) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    body = json.dumps({"choices": [{"text": "x"}], "usage": usage}).encode()
    connected.sendall(HEAD % len(body) + body)


def test_errors_in_a_round_are_counted_with_the_words_of_the_first(script: Callable[..., Script]) -> None:
    def broken(connected: socket.socket) -> None:
        connected.sendall(STREAM + chunk(b'data: {"choices":[{"text":"half"}]}\n\n'))

    def fine(connected: socket.socket) -> None:
        events = b'data: {"choices":[{"text":"all"}]}\n\ndata: [DONE]\n\n'
        connected.sendall(STREAM + chunk(events) + b"0\r\n\r\n")

    # Two first ones, one to warm up, two that break, and the rest is fine.
    engine = script(fine, fine, fine, broken, broken, fine)
    with GatewayThread(route_to(engine.port)) as gateway:
        [one] = bench(gateway.url, clients=(1,), requests=5, endpoint="completions")
    assert one.requests == 3
    [(kind, (number, text))] = one.errors.items()
    assert kind.startswith("stream") and number == 2 and text


def test_an_engine_that_does_not_go_past_the_end_is_asked_without(script: Callable[..., Script]) -> None:
    def refuses(connected: socket.socket) -> None:
        body = b'{"error":{"message":"ignore_eos is not supported","code":"unsupported_parameter"}}'
        connected.sendall(HEAD.replace(b"200 OK", b"400 Bad Request") % len(body) + body)

    engine = script(refuses, whole)
    [one] = bench(f"http://127.0.0.1:{engine.port}", clients=(1,), requests=2, stream=False, endpoint="completions")
    assert one.requests == 2 and one.errors == {}
    assert b"ignore_eos" in engine.requests[0] and not any(b"ignore_eos" in sent for sent in engine.requests[1:])


def test_stopping_gives_what_was_measured_and_ends_what_runs(echo: Echoes) -> None:
    engine = echo(delay_s=0.02)
    heard: list[tuple[int, int, int | None]] = []

    async def work(url: str) -> list[Round]:
        settings = BenchSettings(clients=(2, 4), seconds=3600, tokens=500, prompt_tokens=600)
        running = Bench(url, "m", settings, told=lambda *told: heard.append(told))
        task = asyncio.create_task(running.run())
        while len(heard) < 2:
            await asyncio.sleep(0.01)
        running.stop()
        async with asyncio.timeout(_PATIENCE_S):
            return await task

    with GatewayThread(route_to(engine.port)) as gateway:
        [one] = uvloop.run(work(gateway.url))
        assert one.interrupted and one.clients == 2 and one.requests == 0 and one.unfinished == 2
        assert one.output_tokens_per_s > 0, "the pieces that came are counted"
        assert heard[0] == (2, 0, None)


def test_a_core_of_load_is_more_than_five_thousand_requests_a_second(echo: Echoes) -> None:
    """By the CPU time that its own thread used, so that it holds on a busy machine."""
    url = f"http://127.0.0.1:{echo(keep_alive_max=1_000_000).port}"
    [one] = bench(url, clients=(16,), requests=3000, stream=False, prompt_tokens=64, tokens=16)
    assert one.requests == 3000 and one.errors == {}
    assert one.requests_per_s / one.generator_cpu > 5000


def test_failures_of_the_connection_are_kinds_too() -> None:
    ended: list[Ask] = []
    ask = Ask(ended.append)
    ask.on_failed(Failure.LOST, "gone")
    assert ended == [ask] and ask.error == ("lost", "gone")
