"""grpc.health.v1 and reflection, under both of the names that clients ask for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection, reflection_pb2  # type: ignore[import-untyped]

from pressroom.gateway.grpc.inference_pb2 import POOL

HEALTH = "grpc.health.v1.Health"
_REFLECTION = ("grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")
# How often a client that watches is told of a change.
_WATCH_S = 0.5


class Health:
    """Says whether everything that should answer does, of the server (no name) and of each of its `services`."""

    def __init__(self, ready: Callable[[], bool], services: tuple[str, ...]) -> None:
        self._ready = ready
        self._services = ("", *services)

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        """Its methods by path."""
        forms = {
            "request_deserializer": health_pb2.HealthCheckRequest.FromString,
            "response_serializer": health_pb2.HealthCheckResponse.SerializeToString,
        }
        return {
            f"/{HEALTH}/Check": grpc.unary_unary_rpc_method_handler(self._check, **forms),
            f"/{HEALTH}/Watch": grpc.unary_stream_rpc_method_handler(self._watch, **forms),
        }

    def _status(self, service: str) -> int:
        known = health_pb2.HealthCheckResponse
        if service not in self._services:
            return int(known.SERVICE_UNKNOWN)
        return int(known.SERVING if self._ready() else known.NOT_SERVING)

    async def _check(self, request: Any, context: Any) -> Any:
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service[:80]!r}")
        return health_pb2.HealthCheckResponse(status=status)

    async def _watch(self, request: Any, context: Any) -> None:
        told = -1
        while True:
            status = self._status(request.service)
            if status != told:
                told = status
                await context.write(health_pb2.HealthCheckResponse(status=status))
            await asyncio.sleep(_WATCH_S)


def reflecting(*services: str) -> dict[str, grpc.RpcMethodHandler]:
    """The methods of reflection by path; they describe `services`, health and themselves."""
    for file in (health_pb2, reflection_pb2):
        POOL.AddSerializedFile(file.DESCRIPTOR.serialized_pb)
    servicer = reflection.aio.ReflectionServicer((*services, HEALTH, _REFLECTION[0]), pool=POOL)
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    # Both versions have the same messages on the wire; older clients ask for the first, newer ones for the second.
    return {f"/{name}/ServerReflectionInfo": handler for name in _REFLECTION}
