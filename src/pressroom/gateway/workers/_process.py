"""One worker's process as the server sees it: started with its socket and a pipe, watched, and ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from pressroom.gateway.workers._pipe import Message, Pipe
from pressroom.kernel import settings


class Process:
    """Made by `start`. `received` hears its messages; `gone` is set once it has ended, or has let go of the pipe."""

    def __init__(self, process: subprocess.Popen[bytes], received: Callable[[Process, Message], None]) -> None:
        self._process = process
        self._pipe = Pipe(self._hear, self._lost)
        self._received = received
        self.gone = asyncio.Event()
        #: When it last said something, in seconds of the event loop's clock.
        self.heard = asyncio.get_running_loop().time()

    @classmethod
    async def start(
        cls, spec: dict[str, Any], listening: Mapping[str, socket.socket], received: Callable[[Process, Message], None]
    ) -> Process:
        """Start it with this spec and these sockets. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            fds = {name: each.fileno() for name, each in {**listening, "pipe": theirs}.items()}
            whole = {**spec, **fds}
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "pressroom.gateway.workers", json.dumps(whole)],
                stdin=subprocess.DEVNULL,
                pass_fds=tuple(fds.values()),
                env={**os.environ, settings.WORKSPACE_VARIABLE: str(spec["workspace"])},
                # A session of its own: Ctrl-C in the terminal reaches the server, which decides.
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        made = cls(process, received)
        try:
            await asyncio.get_running_loop().create_connection(lambda: made._pipe, sock=ours)
        except BaseException:
            ours.close()
            process.kill()
            process.wait()
            raise
        return made

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Message) -> None:
        """Send it a message, if it is still there."""
        self._pipe.send(message)

    async def end(self, *, within_s: float = 0.0) -> int:
        """Return when its process is gone, with its exit status: it gets `within_s` seconds to end by itself."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while self._process.poll() is None:
            if loop.time() >= deadline:
                with suppress(ProcessLookupError):
                    self._process.send_signal(signal.SIGKILL)
            await asyncio.sleep(0.01)
        self._pipe.close()
        return self._process.returncode

    def _hear(self, message: Message) -> None:
        self.heard = asyncio.get_running_loop().time()
        self._received(self, message)

    def _lost(self) -> None:
        self.gone.set()
