"""Requests for the V2 doors, and a control of models that does what a test needs."""

from __future__ import annotations

import json
import threading
from typing import Any

from pressroom.gateway.control import Servable, Standing
from pressroom.kernel import NotFoundError

from .engines_and_clients import Client, post


class Control:
    """Models that can be loaded and let go: `m` is served already, `other` could be."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.served = {"m"}
        self.go_on = threading.Event()
        self.go_on.set()

    def index(self) -> list[Servable]:
        return [self.metadata(name) for name in ("m", "other")]

    def metadata(self, name: str) -> Servable:
        if name not in ("m", "other"):
            raise NotFoundError(f"there is no model called {name!r}", hint="There are: m, other.")
        standing = Standing.READY if name in self.served else Standing.UNAVAILABLE
        return Servable(name=name, version="3", standing=standing, reason="", platform="echo")

    def load(self, name: str) -> None:
        assert self.go_on.wait(30)
        self.metadata(name)
        self.calls.append(("load", name))
        self.served.add(name)

    def unload(self, name: str) -> None:
        self.metadata(name)
        self.calls.append(("unload", name))
        self.served.discard(name)


def generate(text: str = "hello big world", **parameters: Any) -> bytes:
    return json.dumps({"text_input": text, "parameters": parameters}).encode()


def tensor(name: str, values: list[Any], datatype: str = "BYTES", shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(values)] if shape is None else shape, "data": values}


def infer(*tensors: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(tensors), **more}).encode()


def ask(client: Client, path: str, body: bytes, *lines: str) -> tuple[int, Any]:
    status, _, answer = client.ask(post(body, path, *lines))
    return status, answer


def events(client: Client, path: str, body: bytes) -> list[dict[str, Any]]:
    """The events of a stream."""
    client.send(post(body, path))
    status, headers, data = client.response()
    assert status == 200 and headers["content-type"] == "text/event-stream", data
    return [json.loads(each.removeprefix(b"data: ")) for each in data.split(b"\n\n") if each]
