"""A gateway with its door for files and batches, and requests to put through it."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai

from pressroom.gateway import Route
from pressroom.gateway._http_request import Request
from pressroom.gateway._http_server import HttpConnection
from pressroom.gateway.access import Access
from pressroom.gateway.batches import BatchDoor
from pressroom.gateway.problems import Problem
from pressroom.kernel import Workspace
from pressroom.testing.gateway import GatewayThread

# The helpers of the gateway's tests; this is the one place that knows where they are.
from ..engines_and_clients import HEAD, Client, Echoes, Script, chat, post, route_to, until  # noqa: TID252

__all__ = ["CHAT", "HEAD", "Client", "Echoes", "Script", "Serving", "chat", "ended", "jsonl", "line", "post", "records"]
__all__ += ["route_to", "start", "until", "upload"]

CHAT = "/v1/chat/completions"


class Serving(GatewayThread):
    """A gateway over `routes` with the files and batches of `workspace`, on a free port, while entered."""

    def __init__(
        self,
        workspace: Workspace,
        *routes: Route,
        clock: Callable[[], float] | None = None,
        access: Access | None = None,
    ) -> None:
        credential = access.internal() if access is not None else ""
        self.access = access
        self.door = BatchDoor(workspace, credential=credential, clock=clock or time.time)
        super().__init__(*routes, settings=workspace.settings.gateway, batches=self.door)
        #: Set to let the gateway refuse requests: status, header lines, body.
        self.refusing: Callable[[Request], tuple[int, bytes, bytes] | None] = lambda _: None
        #: Requests for a completion by the name of the key that they were made for.
        self.asked: Counter[str] = Counter()
        self._handle = self.gateway.handle
        self.gateway.handle = self._refuse_or_handle  # type: ignore[method-assign]

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def __enter__(self) -> Serving:
        super().__enter__()
        return self

    def _refuse_or_handle(self, connection: HttpConnection, request: Request) -> None:
        refusal = self.refusing(request)
        if refusal is not None:
            connection.respond(*refusal)
        elif self.access is not None and (request.path == CHAT.encode() or self.door.takes(b"", request.path)):
            self._let_in(connection, request, self.access)
        else:
            self._handle(connection, request)

    def _let_in(self, connection: HttpConnection, request: Request, access: Access) -> None:
        headers = request.headers
        caller = access.caller(headers.get(b"authorization"), None, headers.get(b"pressroom-on-behalf"))
        if isinstance(caller, Problem):
            connection.respond(caller.status, caller.headers(), caller.body())
        elif self.door.takes(b"", request.path):
            self.door.handle(connection, request, b"", caller)
        else:
            self.asked[caller.key] += 1
            self._handle(connection, request)


def line(n: int, text: str | None = None, **more: Any) -> dict[str, Any]:
    """A request of a batch."""
    body = {"model": "m", "messages": [{"role": "user", "content": text or f"say {n}"}]}
    return {"custom_id": f"r{n}", "method": "POST", "url": CHAT, "body": body, **more}


def jsonl(records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def records(data: bytes) -> list[dict[str, Any]]:
    assert data.endswith(b"\n")
    return [json.loads(one) for one in data.splitlines()]


def upload(client: openai.OpenAI, data: bytes, name: str = "requests.jsonl", **more: Any) -> str:
    return client.files.create(file=(name, data), purpose="batch", **more).id


def start(client: openai.OpenAI, data: bytes, **more: Any) -> Any:
    more = {"endpoint": CHAT, "completion_window": "24h", **more}
    return client.batches.create(input_file_id=upload(client, data), **more)


def ended(client: openai.OpenAI, batch_id: str) -> Any:
    """The batch when it is over."""
    found: list[Any] = []

    def over() -> bool:
        found[:] = [client.batches.retrieve(batch_id)]
        return found[0].status in ("failed", "completed", "expired", "cancelled")

    until(over, seconds=60)
    return found[0]


def main() -> None:
    """A gateway in a process of its own: `WORKSPACE PORT-OF-THE-ENGINE`; it prints its URL."""
    with Workspace.open(Path(sys.argv[1])) as workspace, Serving(workspace, route_to(int(sys.argv[2]))) as serving:
        print(serving.url, flush=True)
        time.sleep(600)
