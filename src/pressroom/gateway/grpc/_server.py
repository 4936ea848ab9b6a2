"""Opens the address of KServe V2 over gRPC."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from pressroom.gateway._descriptors import connections_allowed
from pressroom.gateway.asking import Asker
from pressroom.gateway.binding import BACKLOG, bind
from pressroom.gateway.control import ModelControl
from pressroom.gateway.routes import RouteTable
from pressroom.kernel import GatewaySettings, MissingDependencyError

if TYPE_CHECKING:
    from pressroom.gateway._entrance import Entrance
    from pressroom.gateway.grpc._door import Door

_FEWEST_CONNECTIONS, _MOST_CONNECTIONS = 16, 1_024
_POLL_S = 0.02
# For the errors that end what ran too long to reach their clients.
_LAST_WORDS_S = 0.5
_NEEDED = ("google.protobuf", "grpc_health", "grpc_reflection")


class GrpcServer:
    """The open door."""

    def __init__(self, server: asyncio.Server, door: Door, port: int) -> None:
        self._server = server
        self._door = door
        #: The port it listens on.
        self.port = port

    async def close(self, drain_s: float) -> None:
        """Take no more calls, let those that run end for `drain_s` seconds, and cancel the rest."""
        self._server.close()
        self._door.stop()
        await self._until(lambda: not self._door.busy, drain_s)
        self._door.end()
        await self._until(lambda: not self._door.connections, _LAST_WORDS_S)
        self._door.abort()

    async def _until(self, done: Callable[[], bool], seconds: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not done() and loop.time() < deadline:
            await asyncio.sleep(_POLL_S)


async def open_grpc(
    asker: Asker,
    routes: RouteTable,
    settings: GatewaySettings,
    control: ModelControl | None = None,
    *,
    host: str = "127.0.0.1",
    port: int,
    ready: Callable[[], bool] | None = None,
    refused: Callable[[str, str, int], None] | None = None,
    entrance: Entrance | None = None,
    bound: socket.socket | None = None,
) -> GrpcServer:
    """Serve on `host`:`port` (0: any free port), or on a socket that is `bound` already, until closed. Called on the
    event loop of the asker.

    `ready` says whether everything that should answer does (without it: whether every route is ready); `refused` is as
    that of the REST door, and `entrance` finds who calls.

    Raises:
        MissingDependencyError: gRPC is not installed.
        PortInUseError: somebody else has the address.
        DeployError: the address cannot be bound for another reason.
    """
    need_libraries()
    if bound is None:
        bound = bind(host, port, setting="grpc_port")
    from pressroom.gateway.grpc._door import Door
    from pressroom.gateway.grpc._health import Health, Reflection
    from pressroom.gateway.grpc._service import NAME, Service

    is_ready = ready if ready is not None else lambda: all(route.available for route in routes.all())
    service = Service(asker, routes, control, ready=is_ready, refused=refused)
    methods = {**service.methods(), **Health(is_ready, (NAME,)).methods(), **Reflection(NAME).methods()}
    door = Door(
        methods,
        message_limit=settings.grpc_max_message_bytes,
        most_connections=_connections(),
        entrance=entrance,
    )
    server = await asyncio.get_running_loop().create_server(door.connect, sock=bound, backlog=BACKLOG)
    return GrpcServer(server, door, bound.getsockname()[1])


def need_libraries() -> None:
    """Raises MissingDependencyError where a library that the door needs is not installed."""
    missing = missing_library()
    if missing:
        raise MissingDependencyError(
            f"KServe V2 over gRPC needs the library {missing!r}",
            hint="Install it: pip install 'pressroom[grpc]', and start the server again. REST does without.",
        )


def missing_library() -> str:
    """The name of a library that the door needs and that is not installed; '' where all are."""
    return next((name for name in _NEEDED if not _found(name)), "")


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):  # its parent is missing; it was put away on purpose
        return False


def _connections() -> int:
    """How many clients may be connected: a part of those there is room for. Each may have many calls."""
    return max(_FEWEST_CONNECTIONS, min(_MOST_CONNECTIONS, connections_allowed() // 8))
