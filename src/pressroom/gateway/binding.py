"""Takes the address of a door."""

from __future__ import annotations

import errno
import socket

from pressroom.kernel import DeployError, PortInUseError

#: Connections that may wait to be taken.
BACKLOG = 2_048
_HINTS = {
    "port": "Take another port: `--port`, PRESSROOM_GATEWAY_PORT, or `port` under [gateway] in pressroom.toml.",
    "grpc_port": "Take another one: PRESSROOM_GATEWAY_GRPC_PORT, or `grpc_port` under [gateway] in pressroom.toml.",
}


def bind(host: str, port: int, *, setting: str = "port") -> socket.socket:
    """A listening socket's address taken, so that a port in use is known before anything else begins.

    Port 0 is any free one; `setting` is the gateway's setting that it comes from.

    Raises:
        PortInUseError: somebody else has the address.
        DeployError: the address cannot be bound for another reason.
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
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"port {port} on {host} is in use{_holder(port)}", hint=_HINTS[setting], host=host, port=port
            ) from error
        hint = _HINTS[setting] if error.errno == errno.EACCES else "Set gateway.host to an address of this machine."
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
