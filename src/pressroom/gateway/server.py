"""Opens the gateway's address and serves until told to stop."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from pressroom.gateway._http_server import Listener
from pressroom.gateway.app import Gateway
from pressroom.kernel import DeployError, MissingDependencyError, PortInUseError

if TYPE_CHECKING:
    from pressroom.gateway.grpc import GrpcServer

_log = logging.getLogger(__name__)

_BACKLOG = 2_048
_DRAIN_POLL_S = 0.02
# For the errors that end what ran too long to reach their clients.
_LAST_WORDS_S = 0.5
_PORT_HINT = "Take another port: `--port`, PRESSROOM_GATEWAY_PORT, or `port` under [gateway] in pressroom.toml."


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
    server = await loop.create_server(listener.connect, sock=bound, backlog=_BACKLOG)
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


async def _open_grpc(gateway: Gateway, host: str, port: int, started: Callable[[str, str], None]) -> GrpcServer | None:
    try:
        opened = await gateway.open_grpc(host, port)
    except (MissingDependencyError, DeployError) as error:
        _log.warning("there is no gRPC door: %s. %s", error.message, error.hint)
        started("", f"{error.message}. {error.hint}")
        return None
    started(f"{host}:{opened.port}", "")
    return opened


def bind(host: str, port: int) -> socket.socket:
    """A listening socket's address taken, so that a port in use is known before anything else begins.

    Raises:
        PortInUseError, DeployError: as `serve`.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise DeployError(
            f"the gateway cannot bind to {host!r}: {error}", hint="Set gateway.host to an address of this machine."
        ) from error
    bound = socket.socket(family, kind, protocol)
    try:
        # A port whose last server just ended is free again at once; one with a server on it is not.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        # Two servers can bind a port that neither listens on yet: the second one would find out too late.
        bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"port {port} on {host} is in use{_holder(port)}", hint=_PORT_HINT, host=host, port=port
            ) from error
        hint = _PORT_HINT if error.errno == errno.EACCES else "Set gateway.host to an address of this machine."
        raise DeployError(f"the gateway cannot bind to {host}:{port}: {error.strerror}", hint=hint) from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Where a client on this machine reaches the socket."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _holder(port: int) -> str:
    """' by process 123 (name)' where the system tells."""
    import psutil

    try:
        for found in psutil.net_connections(kind="tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr and found.laddr.port == port and found.pid:
                return f" by process {found.pid} ({psutil.Process(found.pid).name()})"
    except psutil.Error:
        pass  # the system shows other users' sockets to the administrator only
    return ""
