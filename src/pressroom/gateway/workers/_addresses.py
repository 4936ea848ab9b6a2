"""The listening sockets of a port that several processes share.

On Linux each worker has one of its own, and the kernel spreads connections over them. The server keeps all of them
open: where a worker ends, whoever connects meanwhile waits for the next one, and nobody is turned away. Elsewhere all
workers take from the same socket.
"""

from __future__ import annotations

import errno
import socket
import sys

from pressroom.gateway.binding import BACKLOG, bind
from pressroom.kernel import DeployError, PortInUseError

_TRIES = 5


def bind_shared(host: str, port: int, count: int, *, setting: str = "port") -> list[socket.socket]:
    """As `binding.bind`, `count` sockets on one port (0: any free one).

    Raises:
        PortInUseError: somebody else has the address.
        DeployError: the address cannot be bound for another reason.
    """
    tries = 1 if port else _TRIES
    while True:
        tries -= 1
        # Alone first: a stranger who shares his port would not be noticed otherwise.
        alone = bind(host, port, setting=setting)
        if sys.platform != "linux":
            return [alone, *(alone.dup() for _ in range(count - 1))]
        family, address = alone.family, alone.getsockname()
        alone.close()
        made: list[socket.socket] = []
        try:
            for _ in range(count):
                made.append(_shared(family, address))  # noqa: PERF401  # those made are closed where one fails
            return made
        except OSError as error:
            for each in made:
                each.close()
            if error.errno != errno.EADDRINUSE:
                raise DeployError(
                    f"the gateway cannot bind to {host}:{address[1]}: {error.strerror}",
                    hint="Set gateway.host to an address of this machine.",
                ) from error
            if not tries:
                raise PortInUseError(
                    f"port {address[1]} on {host} is in use",
                    hint="Somebody took it this very moment; take another one.",
                    host=host,
                    port=address[1],
                ) from error


def _shared(family: int, address: tuple[object, ...]) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made
