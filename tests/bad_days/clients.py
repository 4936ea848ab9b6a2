"""Clients for one door after the other: thousands at once in one event loop, and as rude as a test wants."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pressroom.gateway.grpc import inference_pb2 as messages

CHAT = "/v1/chat/completions"
# A limit that only ends a test that has failed.
LONG_S = 120.0


@dataclass
class Answer:
    """What came back; `cut` where the connection ended before its end."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: bool = False

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[bytes]:
        """The data of the events of a stream, each of which must be whole."""
        assert self.headers["content-type"] == "text/event-stream" and self.body.endswith(b"\n\n"), self
        frames = self.body[:-2].split(b"\n\n")
        assert all(frame.startswith(b"data: ") for frame in frames), frames
        return [frame.removeprefix(b"data: ") for frame in frames]


def chat(model: str, text: str = "hello big world", **more: Any) -> bytes:
    """The body of a chat."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": text}], **more}).encode()


def generate(text: str = "hello big world", **parameters: Any) -> bytes:
    """The body of a V2 generate."""
    return json.dumps({"text_input": text, "parameters": parameters}).encode()


def tensors(model: str, *texts: str, **more: Any) -> Any:
    """A ModelInferRequest for some texts."""
    request = messages.ModelInferRequest(model_name=model, **more)
    tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[len(texts)])
    tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    return request


def post(path: str, body: bytes, *lines: str) -> bytes:
    """A whole request."""
    head = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


class Connection:
    """One connection to a REST door."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def ask(self, path: str, body: bytes, *lines: str) -> Answer:
        """Send a request and return its answer."""
        await self.send(post(path, body, *lines))
        return await self.answer()

    async def head(self) -> Answer:
        """The status and the headers of the next answer."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:] if line)}
        return Answer(int(lines[0].split()[1]), headers)

    async def answer(self) -> Answer:
        """The next answer."""
        found = await self.head()
        try:
            if found.headers.get("transfer-encoding") == "chunked":
                async for piece in self.pieces():
                    found.body += piece
            else:
                found.body = await self.reader.readexactly(int(found.headers["content-length"]))
        except (asyncio.IncompleteReadError, ConnectionError):
            found.cut = True
        return found

    async def pieces(self) -> AsyncIterator[bytes]:
        """The chunks of a body."""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)

    async def rest(self) -> bytes:
        """All there is until the other side closes."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""

    def abort(self) -> None:
        """Leave without a word."""
        self.writer.transport.abort()


@asynccontextmanager
async def connected(port: int, *, receive_buffer: int = 0) -> AsyncIterator[Connection]:
    """A connection; with `receive_buffer`, one that takes in no more bytes than that before somebody reads."""
    more: dict[str, Any] = {"limit": max(receive_buffer, 1024)} if receive_buffer else {"limit": 1 << 22}
    plain = socket.socket()
    plain.setblocking(False)
    if receive_buffer:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
    connection = Connection(*await asyncio.open_connection(sock=plain, **more))
    try:
        yield connection
    finally:
        connection.abort()


async def ask(port: int, path: str, body: bytes, *lines: str) -> Answer:
    """One request over a connection of its own."""
    async with connected(port) as connection:
        return await connection.ask(path, body, *lines)


def infer(channel: Any, service: str) -> Any:
    """The ModelInfer of a channel: bytes in, a ModelInferResponse out."""
    return channel.unary_unary(f"/{service}/ModelInfer", response_deserializer=messages.ModelInferResponse.FromString)


def stream_infer(channel: Any, service: str, requests: Iterator[Any] | Sequence[Any]) -> Any:
    """A call of ModelStreamInfer."""
    call = channel.stream_stream(
        f"/{service}/ModelStreamInfer",
        request_serializer=messages.ModelInferRequest.SerializeToString,
        response_deserializer=messages.ModelStreamInferResponse.FromString,
    )
    return call(iter(requests), timeout=LONG_S)


def is_openai_error(record: Any) -> bool:
    """Whether it is an error as OpenAI's clients read it."""
    if type(record) is not dict or set(record) != {"error"} or type(record["error"]) is not dict:
        return False
    error = record["error"]
    optional = all(error[key] is None or type(error[key]) is str for key in ("param", "code"))
    return set(error) == {"message", "type", "param", "code"} and optional and bool(error["message"] and error["type"])


def is_v2_error(record: Any) -> bool:
    """Whether it is an error as the Open Inference Protocol has it."""
    return type(record) is dict and set(record) == {"error"} and type(record["error"]) is str and bool(record["error"])
