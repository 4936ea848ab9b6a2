"""grpc.health.v1 and reflection, under both of the names that clients ask for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

from pressroom.gateway.grpc._call import Call
from pressroom.gateway.grpc._calls import SMALL, Conversation, Refusal, by_coroutine
from pressroom.gateway.grpc._door import Method
from pressroom.gateway.grpc.inference_pb2 import POOL
from pressroom.gateway.problems import Problem

HEALTH = "grpc.health.v1.Health"
_REFLECTION = ("grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")
# How often a client that watches is told of a change.
_WATCH_S = 0.5


class Health:
    """Says whether everything that should answer does, of the server (no name) and of each of its `services`."""

    def __init__(self, ready: Callable[[], bool], services: tuple[str, ...]) -> None:
        self._ready = ready
        self._services = ("", *services)

    def methods(self) -> dict[str, Method]:
        """Its methods by path."""
        return {
            f"/{HEALTH}/Check": by_coroutine(self._check, open=True),
            f"/{HEALTH}/Watch": Method(lambda call: Conversation(call, self._watch), SMALL, open=True),
        }

    def _status(self, data: bytes) -> tuple[int, str]:
        known = health_pb2.HealthCheckResponse
        try:
            service = health_pb2.HealthCheckRequest.FromString(data).service
        except DecodeError:
            raise Refusal(Problem(400, "This is not a HealthCheckRequest.")) from None
        if service not in self._services:
            return int(known.SERVICE_UNKNOWN), service
        return int(known.SERVING if self._ready() else known.NOT_SERVING), service

    async def _check(self, call: Call, data: bytes) -> bytes:
        status, service = self._status(data)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            raise Refusal(Problem(404, f"there is no service {service[:80]!r}"))
        return _said(status)

    async def _watch(self, conversation: Conversation) -> None:
        async for data in conversation.requests():
            told = -1
            while True:
                status, _ = self._status(data)
                if conversation.stopping and status == health_pb2.HealthCheckResponse.SERVING:
                    status = int(health_pb2.HealthCheckResponse.NOT_SERVING)
                if status != told:
                    told = status
                    await conversation.send(_said(status))
                if conversation.stopping:
                    return
                await conversation.pause(_WATCH_S)


def _said(status: int) -> bytes:
    data: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
    return data


class Reflection:
    """Describes `services`, health and itself."""

    def __init__(self, *services: str) -> None:
        self._services = (*services, HEALTH, _REFLECTION[0])
        self._servicer: Any = None

    def methods(self) -> dict[str, Method]:
        """Its methods by path. Both versions have the same messages on the wire; older clients ask for the first, newer
        ones for the second."""
        method = Method(lambda call: Conversation(call, self._serve), SMALL, open=True)
        return {f"/{name}/ServerReflectionInfo": method for name in _REFLECTION}

    async def _serve(self, conversation: Conversation) -> None:
        if self._servicer is None:
            # It brings grpcio with it, which nothing else here needs: loaded by whoever asks for it first, and not on
            # the event loop.
            self._servicer = await asyncio.to_thread(self._load)
        from grpc_reflection.v1alpha import reflection_pb2  # type: ignore[import-untyped]

        async def asked() -> AsyncIterator[Any]:
            async for data in conversation.requests():
                try:
                    yield reflection_pb2.ServerReflectionRequest.FromString(data)
                except DecodeError:
                    raise Refusal(Problem(400, "This is not a ServerReflectionRequest.")) from None

        async for answer in self._servicer.ServerReflectionInfo(asked(), None):
            await conversation.send(answer.SerializeToString())

    def _load(self) -> Any:
        from grpc_reflection.v1alpha import reflection, reflection_pb2

        for file in (health_pb2, reflection_pb2):
            POOL.AddSerializedFile(file.DESCRIPTOR.serialized_pb)
        return reflection.aio.ReflectionServicer(self._services, pool=POOL)
