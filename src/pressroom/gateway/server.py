"""Opens the gateway's address and serves until told to stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from pressroom.gateway._http_server import Listener
from pressroom.gateway.app import Gateway
from pressroom.gateway.binding import BACKLOG, bind, url_of
from pressroom.kernel import DeployError, MissingDependencyError

if TYPE_CHECKING:
    from pressroom.gateway.grpc import GrpcServer

_log = logging.getLogger(__name__)

_DRAIN_POLL_S = 0.02
# For the errors that end what ran too long to reach their clients.
_LAST_WORDS_S = 0.5


async def serve(
    gateway: Gateway,
    *,
    host: str | None = None,
    port: int | None = None,
    grpc_port: int | None = None,
    drain_s: float | None = None,
    started: Callable[[str], None],
    grpc_started: Callable[[str, str], None] = lambda address, trouble: None,
    stop: asyncio.Event,
) -> None:
    """Serve until `stop` is set, then let running requests finish for `drain_s` seconds and end the rest.

    Host, port (0: any free one) and `drain_s` default to the gateway's settings. `started` is called with the URL once
    connections are accepted. With a `grpc_port` (0: any free one) the gRPC door is opened first, and `grpc_started` is
    called with its address, or with '' and the reason why there is none: the rest is served without it.

    Raises:
        PortInUseError: somebody else has the address.
        DeployError: the address cannot be bound for another reason.
    """
    settings = gateway.settings
    host = settings.host if host is None else host
    bound = bind(host, settings.port if port is None else port)
    gateway.bound_to(bound.getsockname()[0], url_of(bound))
    grpc = await _open_grpc(gateway, host, grpc_port, grpc_started) if grpc_port is not None else None
    listener = Listener(gateway, body_limit=settings.max_body_bytes, streamed=gateway.streamed)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(listener.connect, sock=bound, backlog=BACKLOG)
    try:
        started(url_of(bound))
        await stop.wait()
    finally:
        server.close()
        listener.stop()
        gateway.leave()
        drain_s = settings.drain_s if drain_s is None else drain_s
        closing = asyncio.create_task(grpc.close(drain_s)) if grpc is not None else None
        deadline = loop.time() + drain_s
        while listener.connections and loop.time() < deadline:
            await asyncio.sleep(_DRAIN_POLL_S)
        if closing is not None:
            await closing
        listener.end()
        deadline = loop.time() + _LAST_WORDS_S
        while listener.connections and loop.time() < deadline:
            await asyncio.sleep(_DRAIN_POLL_S)
        listener.abort()
        gateway.close()
        await asyncio.sleep(_DRAIN_POLL_S)  # what was aborted is closed in the next turns of the loop


async def _open_grpc(gateway: Gateway, host: str, port: int, started: Callable[[str, str], None]) -> GrpcServer | None:
    try:
        opened = await gateway.open_grpc(host, port)
    except (MissingDependencyError, DeployError) as error:
        _log.warning("there is no gRPC door: %s. %s", error.message, error.hint)
        started("", f"{error.message}. {error.hint}")
        return None
    started(f"{host}:{opened.port}", "")
    return opened
