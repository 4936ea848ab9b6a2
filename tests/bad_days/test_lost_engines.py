"""Engines that are killed, hang or sleep while everybody asks for them, through the whole server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pressroom.deploy import Phase, make_wish, wait_until
from pressroom.engines import EngineSpec, Policy, Standing, Supervisor, create
from pressroom.registry import pull

from .clients import (
    CHAT,
    Answer,
    ask,
    chat,
    connected,
    generate,
    infer,
    is_openai_error,
    is_v2_error,
    post,
    stream_infer,
    tensors,
)
from .conftest import MakeHouse
from .house import SERVICE, House, until

# A second without an answer and the engine is ended: health is looked at every three.
_IMPATIENT = "[engines]\npatience_s = 1\nstop_timeout_s = 0.2\n"
_EACH = 11  # of each kind of stream and of whole request; three kinds


class Crowd:
    """Streams and whole requests over every door: the streams have begun, the others have no answer yet."""

    def __init__(self, house: House, model: str, each: int, **parameters: Any) -> None:
        self._parameters = parameters
        self._house = house
        self._model = model
        self._each = each
        self._channel = house.channel()
        self._pool = ThreadPoolExecutor(max_workers=2 * each)
        self.begun = 0

    async def __aenter__(self) -> Crowd:
        port, model, loop, more = self._house.port, self._model, asyncio.get_running_loop(), self._parameters
        request = tensors(model, "a b")
        for name, value in more.items():
            setattr(request.parameters[name], "bool_param" if type(value) is bool else "int64_param", value)
        call = infer(self._channel, SERVICE)
        self.openai = [
            loop.create_task(self._stream(CHAT, chat(model, stream=True, **more))) for _ in range(self._each)
        ]
        v2 = f"/v2/models/{model}/generate_stream"
        self.v2 = [loop.create_task(self._stream(v2, generate(**more))) for _ in range(self._each)]
        self.grpc = [loop.run_in_executor(self._pool, self._call, request) for _ in range(self._each)]
        self.whole = [
            *(loop.create_task(ask(port, CHAT, chat(model, **more))) for _ in range(self._each)),
            *(loop.create_task(ask(port, f"/v2/models/{model}/generate", generate(**more))) for _ in range(self._each)),
        ]
        data = request.SerializeToString()
        self.infer = [loop.run_in_executor(self._pool, lambda: call(data, timeout=60)) for _ in range(self._each)]
        await asyncio.to_thread(until, lambda: self.begun == 3 * self._each, "the first piece of every stream")
        running = 6 * self._each
        await asyncio.to_thread(
            until, lambda: self._house.figure("pressroom_requests_in_flight", model=model) == running
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (*self.openai, *self.v2, *self.whole):
            task.cancel()
        self._channel.close()
        self._pool.shutdown()

    async def _stream(self, path: str, body: bytes) -> Answer:
        async with connected(self._house.port) as connection:
            await connection.send(post(path, body))
            found = await connection.head()
            async for piece in connection.pieces():
                self.begun += not found.body
                found.body += piece
            return found

    def _call(self, request: Any) -> list[Any]:
        found: list[Any] = []
        for response in stream_infer(self._channel, SERVICE, [request]):
            self.begun += not found
            found.append(response)
        return found


async def assert_recovered(crowd: Crowd, said: str = "") -> None:
    """The streams ended with an error of their protocol, and everybody else got the whole answer: `said`, if given."""
    for found in await asyncio.gather(*crowd.openai):
        events = found.events()
        assert is_openai_error(json.loads(events[-1])) and json.loads(events[-1])["error"]["code"] == "engine_error"
        assert len(events) > 1 and b"[DONE]" not in events and json.loads(events[0])["choices"]
    for found in await asyncio.gather(*crowd.v2):
        events = [json.loads(event) for event in found.events()]
        assert is_v2_error(events[-1]) and not any(event.get("done") for event in events)
    for responses in await asyncio.gather(*crowd.grpc):
        assert "The engine failed" in responses[-1].error_message
        assert responses[-1].infer_response.parameters["triton_final_response"].bool_param
    for found in await asyncio.gather(*crowd.whole):
        assert found.status == 200, found
        record = found.json()
        text = record["text_output"] if "text_output" in record else record["choices"][0]["message"]["content"]
        assert text == said if said else text
    for answer in await asyncio.gather(*crowd.infer):
        text = answer.outputs[0].contents.bytes_contents[0].decode()
        assert text == said if said else text


@pytest.mark.parametrize("how", ["killed", "hangs"])
def test_an_engine_is_lost_under_load(house: MakeHouse, how: str) -> None:
    running = house(_IMPATIENT)
    running.deploy("m", text="word", tokens=40, delay_s=0.05)
    before = running.engine("m")

    async def scene() -> None:
        async with Crowd(running, "m", _EACH) as crowd:
            os.kill(before, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
            await asyncio.wait_for(assert_recovered(crowd, " ".join(["word"] * 40)), 60)

    asyncio.run(scene())
    until(lambda: running.calm("m"), "the end of all requests in the figures")
    until(lambda: running.seen("m").restarts == 1)
    assert running.engine("m") != before
    count = running.figure
    assert count("pressroom_requests_total", model="m", status="200") == 3 * _EACH
    assert count("pressroom_requests_total", model="m", status="502") == 3 * _EACH
    assert count("pressroom_upstream_retries_total", model="m") >= 3 * _EACH
    assert running.engine_counts("m")["active"] == 0


def test_what_keeps_an_engine_from_coming_up_may_pass(tmp_path: Path) -> None:
    """One that was ready before is tried anew after a while, though it failed in the same way again and again."""
    log = tmp_path / "logs" / "engine.log"
    spec = EngineSpec(name="m", log=log, stop_timeout_s=1.0)
    policy = Policy(poll=0.02, first_pause=0.01, longest_pause=0.02, again_after=0.2)
    supervisor = Supervisor(lambda: create("echo", spec), policy=policy)
    supervisor.start()
    try:
        ready = supervisor.wait_for(Standing.READY, timeout=60)
        assert ready.endpoint is not None
        log.rename(tmp_path / "kept")
        log.parent.rmdir()
        log.parent.write_text("in the way")  # as a full disk is: its log cannot be opened
        os.kill(ready.endpoint.pid, signal.SIGKILL)
        failed = supervisor.wait_for(Standing.FAILED, timeout=60)
        assert failed.standing is Standing.FAILED and "cannot be started" in failed.detail
        log.parent.unlink()
        assert supervisor.wait_for(Standing.READY, timeout=60).standing is Standing.READY
    finally:
        supervisor.stop()


@pytest.mark.slow
def test_llamacpp_is_killed_under_load(house: MakeHouse, smollm2: Path) -> None:
    running = house()
    pull(running.workspace, str(smollm2), name="m")
    options = {"slots": 6, "context": 512}
    wish = make_wish(running.workspace, "m:1", name="m", engine="llamacpp", options=options)
    wait_until(running.deployments, wish, Phase.READY, timeout_s=120)

    async def scene() -> None:
        async with Crowd(running, "m", 1, max_tokens=96, ignore_eos=True) as crowd:
            os.kill(running.engine("m"), signal.SIGKILL)
            await asyncio.wait_for(assert_recovered(crowd), 120)

    asyncio.run(scene())
    until(lambda: running.calm("m") and running.seen("m").restarts == 1)


def test_a_sleeping_deployment_is_woken_once_by_a_storm(house: MakeHouse) -> None:
    running = house()
    running.deploy("m", idle_stop_s=2)
    until(lambda: running.seen("m").phase == "asleep" and not running.engines(), "sleep")

    async def scene() -> tuple[list[Answer], list[Any]]:
        with running.channel() as channel, ThreadPoolExecutor(max_workers=100) as pool:
            data, call = tensors("m", "good morning").SerializeToString(), infer(channel, SERVICE)
            calls = [pool.submit(call, data, timeout=60) for _ in range(100)]
            whole = [ask(running.port, CHAT, chat("m", "good morning")) for _ in range(400)]
            answers = await asyncio.gather(*whole)
            return answers, [await asyncio.wrap_future(each) for each in calls]

    answers, called = asyncio.run(scene())
    # All of them by one process: it was started once.
    assert running.engine_counts("m")["requests"] == 500
    assert {(each.status, each.json()["choices"][0]["message"]["content"]) for each in answers} == {
        (200, "good morning")
    }
    assert {each.outputs[0].contents.bytes_contents[0] for each in called} == {b"good morning"}
    until(lambda: running.calm("m"))
