"""What a message asks: JSON as OpenAI's bodies are, a simple form of it, or plain text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from pressroom.gateway.feeds.base import Message

#: Where each kind of request goes.
PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "embeddings": "/v1/embeddings"}
# The field that decides it. A body with several of them is somebody's mistake.
_KINDS = {"messages": "chat", "prompt": "completions", "input": "embeddings"}
_ID_LIMIT = 512


class Refused(Exception):
    """The message cannot be asked, now or later; the text says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request for the gateway. `id` is what its answer is called."""

    id: str | int
    path: str
    body: bytes
    stream: bool

    @property
    def embeddings(self) -> bool:
        return self.path == PATHS["embeddings"]


def read_request(message: Message, *, model: str, text_as: str, stream: bool) -> Request:
    """What `message` asks the deployment `model`. Plain text goes to the endpoint `text_as`; `stream` holds where the
    message does not say.

    Raises:
        Refused: it is neither text nor a request, or it is for another model.
    """
    name = own_id(message)
    try:
        text = message.data.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("the message is not UTF-8 text") from None
    if not text.strip():
        raise Refused("the message is empty")
    if not text.lstrip().startswith("{"):
        fields = _from_text(text, text_as)
    else:
        try:
            fields = orjson.loads(message.data)
        except orjson.JSONDecodeError as error:
            raise Refused(f"the message begins as JSON and is not: {error}") from None
    given = fields.pop("id", None)
    if given is not None:
        if isinstance(given, bool) or not isinstance(given, str | int) or len(str(given)) > _ID_LIMIT:
            raise Refused(f"'id' must be text of at most {_ID_LIMIT} characters, or a whole number")
        name = given
    kinds = [kind for field, kind in _KINDS.items() if field in fields]
    if len(kinds) != 1:
        raise Refused("the message must have exactly one of 'messages', 'prompt' and 'input'")
    if fields.setdefault("model", model) != model:
        raise Refused(f"the message is for the model {str(fields['model'])[:80]!r}; this feed asks {model!r}")
    streamed = fields.pop("stream", stream and kinds[0] != "embeddings")
    if not isinstance(streamed, bool):
        raise Refused("'stream' must be true or false")
    if streamed:
        if kinds[0] == "embeddings":
            raise Refused("embeddings are not streamed")
        options = fields.get("stream_options")
        fields["stream"] = True
        fields["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
    return Request(id=name, path=PATHS[kinds[0]], body=orjson.dumps(fields), stream=streamed)


def own_id(message: Message) -> str | int:
    """What a message is called before it was read: as its sender says in a header, else by its place in the broker."""
    return message.id[:_ID_LIMIT] or message.key


def _from_text(text: str, text_as: str) -> dict[str, Any]:
    if text_as == "chat":
        return {"messages": [{"role": "user", "content": text}]}
    return {"prompt" if text_as == "completions" else "input": text}
