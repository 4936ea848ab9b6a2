"""What the usual request leaves behind: nothing that only the collector of cycles finds.

Such objects keep their memory until the collector comes, so that each request works in memory no cache has; and the
collector stops the loop. Measured with 19 of them a request: a tenth of the CPU, and half of the 99th percentile.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from typing import Any

import pytest

from pressroom.engines.backends.echo import Backend
from pressroom.gateway import Books
from pressroom.gateway.ledger import Row
from pressroom.gateway.money import Accounts
from pressroom.gateway.policy import Policy
from pressroom.gateway.routes import Branch
from pressroom.testing.gateway import GatewayThread

from .engines_and_clients import Client, chat, post, route_to
from .test_grant import Kept, tokens

_REQUESTS = 50
_ASKED = {
    "whole": post(chat("hello", max_tokens=4)),
    "stream": post(chat("hello", max_tokens=4, stream=True)),
    "v2": post(json.dumps({"text_input": "hello"}).encode(), "/v2/models/m/generate"),
    "v2 stream": post(json.dumps({"text_input": "hello"}).encode(), "/v2/models/m/generate_stream"),
}


class _Forgetful(Kept):
    def append(self, row: Row) -> bool:
        return True


@pytest.mark.parametrize("steered", [False, True], ids=["plain", "steered"])
@pytest.mark.parametrize("request_bytes", _ASKED.values(), ids=_ASKED)
def test_a_request_leaves_no_cycles(echo: Callable[..., Any], steered: bool, request_bytes: bytes) -> None:
    engine = echo(tokens=4)
    gateway = GatewayThread(books=Books(Accounts((tokens(10**8),)), _Forgetful()))
    if steered:
        names = ("a", "b")
        branches = [
            Branch(name=name, routes=(route_to(engine.port, branch=name, capabilities=Backend.capabilities),))
            for name in names
        ]
        policy = {"fallback": {"order": ["a", "b"]}, "retry": {"attempts": 1}, "breaker": {"failures": 5}}
        gateway.routes.put_branches("m", branches, policy=Policy.parse(policy, names, names))
    else:
        gateway.routes.set(route_to(engine.port, capabilities=Backend.capabilities))
    with gateway:
        client = Client(gateway.port)

        def ask(times: int) -> None:
            for _ in range(times):
                client.send(request_bytes)
                client.response()

        ask(5)
        # The collector runs when another thread of this process allocates, too: it is off while it is counted.
        gc.collect()
        gc.disable()
        try:
            ask(_REQUESTS)
            found = gc.collect()
        finally:
            gc.enable()
        client.close()
    assert found < _REQUESTS, f"{found / _REQUESTS:.1f} objects a request"
