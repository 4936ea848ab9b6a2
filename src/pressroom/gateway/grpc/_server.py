"""Opens the address of KServe V2 over gRPC."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

try:
    import grpc  # type: ignore[import-untyped]
    import grpc.aio  # type: ignore[import-untyped]

    from pressroom.gateway.grpc._health import Health, reflecting
    from pressroom.gateway.grpc._service import NAME, Service
except ModuleNotFoundError as error:
    if (error.name or "").startswith("pressroom"):
        raise
    _missing: ModuleNotFoundError | None = error
else:
    _missing = None

from pressroom.gateway._descriptors import connections_allowed
from pressroom.gateway.asking import Asker
from pressroom.gateway.control import ModelControl
from pressroom.gateway.routes import RouteTable
from pressroom.kernel import DeployError, GatewaySettings, MissingDependencyError, PortInUseError

_MOST_CALLS = 4_096
_MOST_STREAMS = 1_024  # calls at once of one connection
_MOST_METADATA = 16_384
_FEWEST_CONNECTIONS, _MOST_CONNECTIONS = 16, 1_024
_PORT_HINT = "Take another one: PRESSROOM_GATEWAY_GRPC_PORT, or `grpc_port` under [gateway] in pressroom.toml."


class GrpcServer:
    """The open door."""

    def __init__(self, server: grpc.aio.Server, service: Service, port: int) -> None:
        self._server = server
        self._service = service
        #: The port it listens on.
        self.port = port

    async def close(self, drain_s: float) -> None:
        """Take no more calls, let those that run end for `drain_s` seconds, and cancel the rest."""
        self._service.stop()
        await self._server.stop(drain_s)


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
) -> GrpcServer:
    """Serve on `host`:`port` (0: any free port) until closed. Called on the event loop of the asker.

    `ready` says whether everything that should answer does (without it: whether every route is ready); `refused` is as
    that of the REST door.

    Raises:
        MissingDependencyError: gRPC is not installed.
        PortInUseError: somebody else has the address.
        DeployError: the address cannot be bound for another reason.
    """
    if _missing is not None:
        raise MissingDependencyError(
            f"KServe V2 over gRPC needs the library {_missing.name!r}",
            hint="Install it: pip install 'pressroom[grpc]'. Without it, set gateway.grpc_port = -1.",
        ) from _missing
    port = _claimed(host, port)
    is_ready = ready if ready is not None else lambda: all(route.ready for route in routes.all())
    service = Service(asker, routes, control, ready=is_ready, refused=refused)
    handlers = {**service.handlers(), **Health(is_ready, (NAME,)).handlers(), **reflecting(NAME)}
    server = grpc.aio.server(
        handlers=(_Handlers(handlers),),
        maximum_concurrent_rpcs=_MOST_CALLS,
        options=(
            # Two servers on one port would take turns in silence.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", settings.grpc_max_message_bytes),
            # An answer is as long as the engine makes it.
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", _MOST_METADATA),
            ("grpc.absolute_max_metadata_size", 2 * _MOST_METADATA),
            ("grpc.max_concurrent_streams", _MOST_STREAMS),
            # As many connections as leave room for the other door's, each with little time to say what it is.
            ("grpc.max_allowed_incoming_connections", _connections()),
            ("grpc.server_handshake_timeout_ms", 20_000),
            ("grpc.max_connection_idle_ms", 600_000),
            # A client that is gone without a word is found after a minute and 20 s.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.keepalive_permit_without_calls", 1),
            # Clients may ping every ten seconds; one that floods is sent away.
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.http2.max_ping_strikes", 3),
        ),
    )
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError as error:  # somebody took it since it was looked at
        raise PortInUseError(f"port {port} on {host} is in use", hint=_PORT_HINT, host=host, port=port) from error
    await server.start()
    return GrpcServer(server, service, bound)


class _Handlers:
    """Finds the method of a call: all of them in one dictionary."""

    def __init__(self, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        self._find = handlers.get

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._find(details.method)


def _connections() -> int:
    """How many clients may be connected: a part of those there is room for. Each may have many calls."""
    return max(_FEWEST_CONNECTIONS, min(_MOST_CONNECTIONS, connections_allowed() // 8))


def _claimed(host: str, port: int) -> int:
    """The port, after a look whether it can be had: gRPC itself says why not to its log only.

    Raises:
        PortInUseError, DeployError: as `open_grpc`.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
            tried.listen(1)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            raise PortInUseError(f"port {port} on {host} is in use", hint=_PORT_HINT, host=host, port=port) from error
        hint = _PORT_HINT if number == errno.EACCES else "Set gateway.host to an address of this machine."
        raise DeployError(f"the gRPC door cannot bind to {host}:{port}: {error}", hint=hint) from error
    return port
