"""What a soak's clients do: every door, politely and not. Each visit says how it went in a word, and checks it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from pressroom.gateway.grpc import inference_pb2 as messages

_SERVICE = "/inference.GRPCInferenceService"
_CHAT = "/v1/chat/completions"
_TEXT = "the quick brown fox jumps over the lazy dog and is not seen again until the next morning"
_VISITS_ON_A_CONNECTION = 25
# Longer than any wait for an engine that is started again.
_LONG_S = 120.0
# Of what went wrong, so many are told in full.
_TOLD = 20

#: An engine that was ended in the middle of a stream: a proper error, and the only one there may be.
BROKEN = "broken"


class Wrong(Exception):
    """What came back is not what the protocol says."""


@dataclass
class Tally:
    """How the visits went: by kind and outcome, and the first of those that went wrong."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def note(self, kind: str, outcome: str) -> None:
        self.outcomes[kind, outcome] += 1

    def complain(self, kind: str, why: str) -> None:
        self.outcomes[kind, "wrong"] += 1
        if len(self.wrong) < _TOLD:
            self.wrong.append(f"{kind}: {why}"[:500])

    @property
    def total(self) -> int:
        return self.outcomes.total()

    @property
    def failures(self) -> int:
        return sum(count for (_, outcome), count in self.outcomes.items() if outcome == "wrong")


class Connection:
    """A connection to the REST doors."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.visits = 0

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 22))

    async def send(self, method: str, path: str, body: bytes = b"") -> None:
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        await self._writer.drain()

    async def head(self) -> tuple[int, bytes]:
        head = await self._reader.readuntil(b"\r\n\r\n")
        return int(head[9:12]), head.lower()

    async def answer(self) -> tuple[int, bytes]:
        status, head = await self.head()
        if b"transfer-encoding: chunked" in head:
            body = b""
            while piece := await self.piece():
                body += piece
        else:
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            body = await self._reader.readexactly(length)
        return status, body

    async def piece(self) -> bytes:
        """The next chunk; empty at the end."""
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        return (await self._reader.readexactly(size + 2))[:-2]

    async def ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        await self.send("POST", path, body)
        return await self.answer()

    def leave(self) -> None:
        self._writer.transport.abort()


class Visitor:
    """One client: visits one after the other, each of a kind drawn by its weight, `pause` seconds apart."""

    def __init__(self, port: int, grpc_address: str, models: list[str], tally: Tally, *, seed: int) -> None:
        self._port = port
        self._grpc = grpc_address
        self._models = models
        self._tally = tally
        self._chance = random.Random(seed)
        self._connection: Connection | None = None
        self._channel: Any = None
        self._calls = 0
        kinds = self._kinds()
        self._names = [name for name, _, _ in kinds]
        self._weights = [weight for _, weight, _ in kinds]
        self._visits = {name: visit for name, _, visit in kinds}

    async def run(self, pause: float, over: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._chance.uniform(0, pause)
        try:
            while not over.is_set():
                if (wait := due - loop.time()) > 0:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(over.wait(), wait)
                        break
                due = max(due + pause, loop.time())
                await self._visit(*self._chance.choices(self._names, self._weights))
        finally:
            self._hang_up()
            if self._channel is not None:
                await self._channel.close()

    async def ask_whole(self) -> None:
        """One chat over a connection of its own."""
        await self._visit("chat")
        self._hang_up()

    async def _visit(self, kind: str) -> None:
        try:
            async with asyncio.timeout(_LONG_S):
                self._tally.note(kind, await self._visits[kind]())
        except Wrong as error:
            self._tally.complain(kind, str(error))
            self._hang_up()
        except TimeoutError:
            self._tally.complain(kind, f"no answer in {_LONG_S:.0f} s")
            self._hang_up()
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            self._tally.complain(kind, f"{type(error).__name__}: {error}")
            self._hang_up()

    def _kinds(self) -> list[tuple[str, int, Callable[[], Awaitable[str]]]]:
        return [
            ("chat", 20, self._chat),
            ("chat stream", 15, self._chat_stream),
            ("two answers", 5, self._two),
            ("completion", 5, self._completion),
            ("embeddings", 3, self._embeddings),
            ("v2 infer", 8, self._infer),
            ("v2 generate", 8, self._generate),
            ("v2 stream", 6, self._generate_stream),
            ("grpc infer", 8, self._grpc_infer),
            ("grpc stream", 5, self._grpc_stream),
            ("grpc leaves", 2, self._grpc_leaves),
            ("leaves before", 3, self._leaves_before),
            ("leaves within", 5, self._leaves_within),
            ("malformed", 6, self._malformed),
            ("looks", 3, self._looks),
            ("no such model", 1, self._no_model),
        ]

    # What they have in common.

    async def _polite(self) -> Connection:
        if self._connection is None or self._connection.visits >= _VISITS_ON_A_CONNECTION:
            self._hang_up()
            self._connection = await Connection.open(self._port)
        self._connection.visits += 1
        return self._connection

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.leave()
            self._connection = None

    def _text(self) -> str:
        words = _TEXT.split()
        self._chance.shuffle(words)
        return " ".join(words)

    def _body(self, **more: Any) -> bytes:
        message = {"role": "user", "content": self._text()}
        return json.dumps(
            {"model": self._chance.choice(self._models), "messages": [message], **_SHORT, **more}
        ).encode()

    async def _post(self, path: str, body: bytes, status: int = 200) -> Any:
        found, answer = await (await self._polite()).ask(path, body)
        if found != status:
            raise Wrong(f"status {found} in place of {status}: {answer[:300]!r}")
        return json.loads(answer)

    # OpenAI.

    async def _chat(self) -> str:
        record = await self._post(_CHAT, self._body())
        return _sure(record["choices"][0]["message"]["role"] == "assistant", record)

    async def _two(self) -> str:
        record = await self._post(_CHAT, self._body(n=2))
        return _sure([each["index"] for each in record["choices"]] == [0, 1], record)

    async def _completion(self) -> str:
        body = json.dumps({"model": self._chance.choice(self._models), "prompt": self._text(), **_SHORT}).encode()
        record = await self._post("/v1/completions", body)
        return _sure(record["usage"]["completion_tokens"] > 0, record)

    async def _embeddings(self) -> str:
        body = json.dumps({"model": self._models[0], "input": "a"}).encode()
        record = await self._post("/v1/embeddings", body, 400)
        return _sure(_is_openai_error(record), record) and "refused"

    async def _no_model(self) -> str:
        record = await self._post(_CHAT, self._body(model="nobody"), 404)
        return _sure(record["error"]["code"] == "model_not_found", record) and "refused"

    async def _chat_stream(self) -> str:
        status, body = await (await self._polite()).ask(
            _CHAT, self._body(stream=True, n=self._chance.choice((1, 1, 2)))
        )
        frames = [each.removeprefix(b"data: ") for each in body.split(b"\n\n") if each]
        if frames and frames[-1] == b"[DONE]":
            return _sure(status == 200, body)
        record = json.loads(frames[-1]) if frames else {}
        return _sure(status == 200 and _is_openai_error(record), body) and BROKEN

    # V2.

    async def _infer(self) -> str:
        texts = [self._text() for _ in range(self._chance.randrange(1, 4))]
        tensor = {"name": "text_input", "datatype": "BYTES", "shape": [len(texts)], "data": texts}
        body = json.dumps({"inputs": [tensor], "parameters": _SHORT}).encode()
        record = await self._post(self._v2("infer"), body)
        return _sure(record["outputs"][0]["shape"] == [len(texts)], record)

    async def _generate(self) -> str:
        record = await self._post(self._v2("generate"), self._generated())
        return _sure("text_output" in record, record)

    async def _generate_stream(self) -> str:
        status, body = await (await self._polite()).ask(self._v2("generate_stream"), self._generated())
        last = json.loads(body[:-2].rpartition(b"data: ")[2])
        if "error" in last:
            return _sure(status == 200 and type(last["error"]) is str, body) and BROKEN
        return _sure(status == 200 and last["done"], body)

    def _v2(self, verb: str) -> str:
        return f"/v2/models/{self._chance.choice(self._models)}/{verb}"

    def _generated(self) -> bytes:
        return json.dumps({"text_input": self._text(), "parameters": _SHORT}).encode()

    # gRPC.

    def _call(self, method: str, kind: Any) -> Any:
        """A method of a channel that is made anew now and then."""
        self._calls += 1
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self._grpc, options=[("grpc.use_local_subchannel_pool", 1)])
        make = self._channel.unary_unary if kind is messages.ModelInferResponse else self._channel.stream_stream
        return make(
            f"{_SERVICE}/{method}",
            request_serializer=messages.ModelInferRequest.SerializeToString,
            response_deserializer=kind.FromString,
        )

    def _request(self) -> Any:
        request = messages.ModelInferRequest(model_name=self._chance.choice(self._models))
        tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(self._text().encode())
        request.parameters["max_tokens"].int64_param = _SHORT["max_tokens"]
        return request

    async def _grpc_infer(self) -> str:
        try:
            found = await self._call("ModelInfer", messages.ModelInferResponse)(self._request(), timeout=_LONG_S)
        except grpc.RpcError as error:
            raise Wrong(f"{error.code()}: {error.details()}") from error
        await self._change_channel()
        return _sure(len(found.outputs) > 0, found)

    async def _grpc_stream(self) -> str:
        call = self._call("ModelStreamInfer", messages.ModelStreamInferResponse)
        try:
            found = [each async for each in call(iter([self._request()]))]
        except grpc.RpcError as error:
            raise Wrong(f"{error.code()}: {error.details()}") from error
        await self._change_channel()
        final = bool(found) and found[-1].infer_response.parameters["triton_final_response"].bool_param
        return _sure(final, found) and (BROKEN if found[-1].error_message else "ok")

    async def _grpc_leaves(self) -> str:
        call = self._call("ModelStreamInfer", messages.ModelStreamInferResponse)(iter([self._request()]))
        with contextlib.suppress(grpc.RpcError):
            await call.read()
        call.cancel()
        return "left"

    async def _change_channel(self) -> None:
        if self._calls >= _VISITS_ON_A_CONNECTION and self._channel is not None:
            channel, self._channel, self._calls = self._channel, None, 0
            await channel.close()

    # The others.

    async def _leaves_before(self) -> str:
        connection = await Connection.open(self._port)
        body = self._body(n=4) if self._chance.random() < 0.3 else self._body(stream=self._chance.random() < 0.5)
        await connection.send("POST", _CHAT, body)
        await asyncio.sleep(self._chance.uniform(0, 0.02))
        connection.leave()
        return "left"

    async def _leaves_within(self) -> str:
        connection = await Connection.open(self._port)
        if self._chance.random() < 0.5:
            await connection.send("POST", _CHAT, self._body(stream=True))
        else:
            await connection.send("POST", self._v2("generate_stream"), self._generated())
        try:
            await connection.head()
            await connection.piece()
        finally:
            connection.leave()
        return "left"

    async def _malformed(self) -> str:
        path, good = self._chance.choice(((_CHAT, self._body()), (self._v2("infer"), self._generated())))
        body = bytearray(good)
        for _ in range(self._chance.randrange(1, 4)):
            at = self._chance.randrange(len(body))
            if self._chance.random() < 0.5:
                body[at] = self._chance.randrange(256)
            else:
                del body[at : at + self._chance.randrange(1, 20)]
            body = body or bytearray(b"x")
        status, answer = await (await self._polite()).ask(path, bytes(body))
        if status == 200:
            return "ok"  # what was changed was of no consequence
        record = json.loads(answer)
        proper = _is_openai_error(record) if path == _CHAT else type(record["error"]) is str
        return _sure(status in (400, 404) and proper, answer) and "refused"

    async def _looks(self) -> str:
        path = self._chance.choice(
            ("/v1/models", "/metrics", "/health/ready", "/v2", "/v2/repository/index", "/nowhere")
        )
        connection = await self._polite()
        await connection.send("GET", path)
        status, body = await connection.answer()
        # Not ready while an engine is started again.
        return _sure(status == (404 if path == "/nowhere" else 200) or path == "/health/ready", body)


_SHORT = {"max_tokens": 12}


def _sure(right: Any, found: Any) -> str:
    if not right:
        raise Wrong(f"not an answer: {found!r}")
    return "ok"


def _is_openai_error(record: Any) -> bool:
    return set(record) == {"error"} and set(record["error"]) == {"message", "type", "param", "code"}
