"""How many tokens a prompt has, asked of the engine that will read it.

Asked only where it matters: a request is admitted by the length of its text, which no prompt has more tokens than, as
long as there is money for that many; where there is not, they are counted before it is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from pressroom.gateway.protocols.openai import CHAT, Endpoint
from pressroom.gateway.upstream import Call, Failure, Upstream

if TYPE_CHECKING:
    from pressroom.gateway._response import Head
    from pressroom.gateway.routes import Lane

# Token numbers of a prompt of a million tokens are shorter than this.
_LONGEST = 16 << 20
_TEMPLATE, _TOKENS = b"/apply-template", b"/tokenize"
# What of a chat decides on its prompt.
_ASKED = ("messages", "tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")


def countable(lane: Lane, endpoint: Endpoint, fields: dict[str, Any]) -> bool:
    """Whether the engine of `lane` can be asked."""
    if not lane.route.ready or lane.route.engine not in _ENGINES:
        return False
    return endpoint is CHAT or isinstance(fields.get("prompt"), str)


class Count(Call):
    """A question under way. `then` gets the tokens, or None where the engine did not say, once; after `cancel` not."""

    __slots__ = ("_address", "_engine", "_path", "_pieces", "_size", "_status", "_then", "_upstream")

    def __init__(
        self,
        upstream: Upstream,
        lane: Lane,
        endpoint: Endpoint,
        fields: dict[str, Any],
        then: Callable[[int | None], None],
    ) -> None:
        super().__init__()
        self._upstream = upstream
        self._address = (lane.route.host, lane.route.port)
        self._engine = lane.route.engine
        self._then = then
        self._status = 0
        self._pieces: list[bytes] = []
        self._size = 0
        self._path = b""
        if endpoint is not CHAT:
            self._ask(_TOKENS, _ENGINES[self._engine](fields["prompt"]))
        elif self._engine == "llamacpp":
            self._ask(_TEMPLATE, {name: fields[name] for name in _ASKED if name in fields})
        else:
            self._ask(_TOKENS, {name: fields[name] for name in ("model", *_ASKED) if name in fields})

    def cancel(self) -> None:
        """Nobody wants to know any more."""
        self._upstream.cancel(self)

    def on_head(self, head: Head) -> None:
        self._status = head.status

    def on_data(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        if self._size > _LONGEST:
            self._upstream.cancel(self)
            self._then(None)

    def on_end(self) -> None:
        try:
            found = orjson.loads(b"".join(self._pieces))
            if self._path == _TEMPLATE:
                self._ask(_TOKENS, _llamacpp(found["prompt"]))
                return
            count = found["count"] if "count" in found else len(found["tokens"])
        except (ValueError, LookupError, TypeError):
            count = None
        self._then(count if self._status == 200 and type(count) is int and count >= 0 else None)

    def on_failed(self, failure: Failure, detail: str) -> None:
        self._then(None)

    def _ask(self, path: bytes, fields: dict[str, Any]) -> None:
        body = orjson.dumps(fields)
        self._path, self._pieces, self._size = path, [], 0
        head = b"POST %b HTTP/1.1\r\nHost: %b:%d\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (
            path,
            self._address[0].encode(),
            self._address[1],
            len(body),
        )
        self._upstream.send(self._address, head, body, self)


def _llamacpp(prompt: str) -> dict[str, Any]:
    return {"content": prompt, "add_special": True, "parse_special": True}


def _plain(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt}


_ENGINES: dict[str, Callable[[str], dict[str, Any]]] = {
    "llamacpp": _llamacpp,
    "vllm": _plain,
    "transformers": _plain,
    "echo": _plain,
}
