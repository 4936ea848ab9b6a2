"""The HTTP side of the engine: OpenAI's endpoints on loopback, for the gateway."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from pressroom.engines._vendor import completions
from pressroom.engines._vendor.asking import Begun, Vendor
from pressroom.engines._vendor.cutting import HalfClosing, Work
from pressroom.engines._vendor.keys import Key
from pressroom.engines._vendor.options import Options
from pressroom.engines._vendor.protocol import Asked
from pressroom.engines._vendor.refusals import Refusal, invalid, unsupported

_log = logging.getLogger(__name__)

# The gateway's own limit is lower unless somebody raised it.
_MOST_BODY = 64 << 20
_JSON = "application/json"
_EVENTS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
# After the deadline, for the words that say so.
_GRACE_S = 10.0


class VendorServer:
    """Serves one model as `name`. `capabilities` that it lacks are refused."""

    def __init__(self, name: str, vendor: Vendor, options: Options, key: Key, capabilities: dict[str, bool]) -> None:
        self._name = name
        self._vendor = vendor
        self._options = options
        self._key = key
        self._can = capabilities
        self._address = ""
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None
        self._work: dict[asyncio.BaseTransport, Work] = {}
        self._figures = {"requests": 0, "active": 0, "failed": 0, "cancelled": 0}

    async def listen(self) -> int:
        """Open a free loopback port and return it."""
        app = web.Application(client_max_size=_MOST_BODY)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._asked(self._chat))
        app.router.add_post("/v1/completions", self._asked(self._completion))
        app.router.add_post("/v1/embeddings", self._asked(self._embeddings))
        app.router.add_route("*", "/{rest:.*}", self._nothing)
        # handler_cancellation: a client that leaves ends the request to the vendor, which costs no more then.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        serve = self._runner.server
        assert serve is not None
        self._listening = await asyncio.get_running_loop().create_server(
            lambda: HalfClosing(serve(), self._cut), "127.0.0.1", 0, backlog=2048
        )
        port = int(self._listening.sockets[0].getsockname()[1])
        self._address = f"127.0.0.1:{port}"
        return port

    async def close(self) -> None:
        """End what runs, and let go of the connections."""
        if self._listening is not None:
            self._listening.close()
        if self._runner is not None:
            await self._runner.cleanup()
        await self._vendor.close()

    # What is not a question to the vendor.

    async def _health(self, request: web.Request) -> web.Response:
        breaker = self._vendor.breaker
        vendor = {"circuit": breaker.state, "failures_in_a_row": breaker.failures}
        return _json(200, orjson.dumps({"status": "ok", **self._figures, "vendor": vendor}))

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": self._name, "object": "model", "created": 0, "owned_by": "vendor"}
        return _json(200, orjson.dumps({"object": "list", "data": [model]}))

    async def _nothing(self, request: web.Request) -> web.Response:
        return _refused(Refusal(404, "There is nothing at this address.", code=None, type="not_found_error"))

    # What is.

    def _chat(self, fields: dict[str, Any]) -> Asked:
        self._needs("chat", "chats")
        return self._vendor.protocol.chat(fields)

    def _completion(self, fields: dict[str, Any]) -> Asked:
        self._needs("completions", "completions")
        if self._options.completions == "native":
            return self._vendor.protocol.completion(fields)
        return completions.by_chat(self._vendor.protocol, fields, self._options.extra)

    def _embeddings(self, fields: dict[str, Any]) -> Asked:
        self._needs("embeddings", "embeddings")
        return self._vendor.protocol.embeddings(fields)

    def _needs(self, capability: str, what: str) -> None:
        if not self._can.get(capability, False):
            raise unsupported(None, f"this model runs at a vendor, and does not give {what}.")

    def _asked(
        self, translate: Callable[[dict[str, Any]], Asked]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            figures = self._figures
            figures["requests"] += 1
            figures["active"] += 1
            line, work = request.transport, Work()
            if line is not None:
                self._work[line] = work
            try:
                self._guard(request)
                fields = _fields(await request.read())
                asked = translate(fields)
                deadline = asyncio.get_running_loop().time() + self._options.timeout_s
                work.begin(fields, chat="messages" in fields, stream=asked.stream)
                if asked.stream:
                    return await self._stream(request, asked, deadline, work)
                return await self._whole(asked, deadline, work)
            except Refusal as refusal:
                figures["failed"] += 1
                return _refused(refusal)
            except web.HTTPRequestEntityTooLarge:
                return _refused(Refusal(413, "The body is too large.", code=None, type="invalid_request_error"))
            except asyncio.CancelledError:
                figures["cancelled"] += 1
                if not work.was_cut:
                    raise
                work.leave()
                return await self._last_words(request, work)
            except ConnectionError:
                figures["cancelled"] += 1  # the client left while it was written to
                raise
            except Exception:  # the edge of the process  # noqa: BLE001
                figures["failed"] += 1
                _log.exception("a request failed")
                return _refused(Refusal(500, "The engine failed; its log says how.", code="engine_error"))
            finally:
                figures["active"] -= 1
                if line is not None:
                    self._work.pop(line, None)

        return handle

    def _guard(self, request: web.Request) -> None:
        """Refuse what a web page could send: asking costs money here."""
        if request.headers.get("Host") != self._address or "Origin" in request.headers:
            raise Refusal(403, "This engine answers the gateway only.", code=None, type="invalid_request_error")
        if request.content_type != _JSON:
            raise Refusal(415, f"The body must be sent as {_JSON}.", code=None, type="invalid_request_error")

    def _cut(self, line: asyncio.BaseTransport) -> bool:
        """The client has closed its side of the line. Whether there is anything to say on it."""
        work = self._work.get(line)
        return work is not None and work.cut()

    async def _last_words(self, request: web.Request, work: Work) -> web.StreamResponse:
        """What it came to, now that the vendor was left; and then the end of the line."""
        words = self._key.without(orjson.dumps(work.last_words(self._name)))
        if not work.stream:
            whole = _json(200, words)
            whole.force_close()
            return whole
        response = work.response
        if response is None:
            response = web.StreamResponse(headers=_EVENTS)
            response.force_close()
            await response.prepare(request)
        response.force_close()
        try:
            async with asyncio.timeout(_GRACE_S):
                await response.write(b"data: " + words + b"\n\ndata: [DONE]\n\n")
                await response.write_eof()
        except TimeoutError as error:
            raise ConnectionResetError("the client did not read how its stream ended") from error
        return response

    async def _whole(self, asked: Asked, deadline: float, work: Work) -> web.Response:
        answer = asked.answer(await self._vendor.whole(asked, deadline))
        answer["model"] = self._name
        work.done = True
        return _json(200, self._key.without(orjson.dumps(answer)))

    async def _stream(self, request: web.Request, asked: Asked, deadline: float, work: Work) -> web.StreamResponse:
        async with self._vendor.streamed(asked, deadline) as begun:
            work.begun = begun
            work.response = response = web.StreamResponse(headers=_EVENTS)
            await response.prepare(request)
            try:
                # The vendor's part is bounded within; this is for a client that does not read.
                async with asyncio.timeout_at(deadline + _GRACE_S):
                    await self._forward(response, asked, begun, work)
            except TimeoutError as error:
                raise ConnectionResetError("the client did not read its stream in time") from error
        return response

    async def _forward(self, response: web.StreamResponse, asked: Asked, begun: Begun, work: Work) -> None:
        """Write the pieces as they come, and the end. What goes wrong from here on is an event, and the last one."""
        try:
            async for together in begun.pieces():
                work.saw(together)
                pieces = [piece for found in together if (piece := asked.piece(found)) is not None]
                for piece in pieces:
                    piece["model"] = self._name
                if pieces:
                    work.frame = {key: pieces[-1].get(key) for key in ("id", "object", "created", "model")}
                    await response.write(self._key.without(b"".join(map(_event, pieces))))
            end = b"data: [DONE]\n\n"
            if asked.usage and begun.usage:
                end = _event({**work.frame, "choices": [], "usage": begun.usage}) + end
        except Refusal as refusal:
            _log.warning("a stream broke off with %s: %s", refusal.code, refusal.message)
            self._figures["failed"] += 1
            end = b"data: " + refusal.body() + b"\n\n"
        work.done = True
        await response.write(end)
        await response.write_eof()


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid(f"We could not parse the JSON body of your request: {error}.") from None
    if not isinstance(fields, dict):
        raise invalid("The body of the request must be a JSON object.")
    return fields


def _event(piece: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(piece) + b"\n\n"


def _json(status: int, body: bytes, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=body, content_type=_JSON, headers=headers)


def _refused(refusal: Refusal) -> web.Response:
    return _json(refusal.status, refusal.body(), refusal.headers())
