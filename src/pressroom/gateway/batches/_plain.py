"""The lines that `press batch` reads: OpenAI's batch lines, or simple ones, as requests to one deployment.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {…}}     as OpenAI has it
    {"prompt": "…"}   {"messages": […]}   {"input": "…"}                                 with an "id" if wanted
    "…"                                                                                  a prompt and nothing else

Fields beside these go into the request (`{"prompt": "…", "temperature": 0}`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import orjson

from pressroom.gateway.batches.base import ENDPOINTS, BatchError, Line

_ID_LENGTH = 512
_CONVERSATION = {"chat": "messages", "completions": "prompt", "embeddings": "input"}
_NAMES = {path: name for name, path in ENDPOINTS.items()}
_OPENAI = {"url", "body"}
_OPENAI_ALL = {"custom_id", "id", "method", "url", "body"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """What the lines do not say: the deployment that answers, the endpoint of simple lines (None: chat, or embeddings
    for what has an input), the system message of prompts for chat, and fields for each request that has none of its
    own."""

    deployment: str
    endpoint: str | None = None
    system: str | None = None
    defaults: dict[str, Any] = field(default_factory=dict)

    def line(self, text: bytes, *, number: int, row: int) -> Line:
        """The request of a line. `number` counts requests from 0, `row` is the line's in the file, for messages and
        for the id of one that has none. Its tag is a digest of the request: another request has another one.

        Raises:
            BatchError: it is none of what can be read.
        """
        try:
            record = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise _wrong(row, f"it is not JSON: {error}") from error
        if isinstance(record, str):
            record = {"prompt": record}
        if not isinstance(record, dict):
            raise _wrong(row, "it is neither an object nor a string")
        custom_id = _id(record, row)
        name, body = self._openai(record, row) if record.keys() >= _OPENAI else self._simple(record, row)
        if body.get("stream"):
            raise _wrong(row, "answers of a batch are not streamed")
        body = {**self._defaults(name, body), **body, "model": self.deployment}
        path = ENDPOINTS[name]
        try:
            data = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
        except orjson.JSONEncodeError as error:
            raise _wrong(row, f"its request cannot be written: {error}") from error
        digest = hashlib.blake2b(b"%b\n%b" % (path.encode(), data), digest_size=16).hexdigest()
        return Line(number=number, custom_id=custom_id, path=path, body=data, tag=digest)

    def _openai(self, record: dict[str, Any], row: int) -> tuple[str, dict[str, Any]]:
        for name in record:
            if name not in _OPENAI_ALL:
                raise _wrong(row, f"{name[:100]!r} is not a field of a batch line")
        if record.get("method", "POST") != "POST":
            raise _wrong(row, "its method is not POST")
        endpoint = _NAMES.get(record["url"]) if isinstance(record["url"], str) else None
        if endpoint is None:
            raise _wrong(row, f"its url is none of {', '.join(_NAMES)}")
        if self.endpoint not in (None, endpoint):
            raise _wrong(row, f"its url is not that of --endpoint {self.endpoint}")
        if not isinstance(record["body"], dict):
            raise _wrong(row, "its body is not an object")
        return endpoint, record["body"]

    def _simple(self, record: dict[str, Any], row: int) -> tuple[str, dict[str, Any]]:
        given = [name for name in _CONVERSATION.values() if name in record]
        if len(given) != 1:
            raise _wrong(row, "it has none, or more than one, of prompt, messages and input")
        what = given[0]
        body = {name: value for name, value in record.items() if name not in ("id", "custom_id", what)}
        endpoint = self.endpoint or ("embeddings" if what == "input" else "chat")
        value = record[what]
        if what == "prompt" and endpoint == "chat":
            if not isinstance(value, str):
                raise _wrong(row, "its prompt is not a string, which one for chat is")
            system = [{"role": "system", "content": self.system}] if self.system else []
            value = [*system, {"role": "user", "content": value}]
        elif what != "prompt" and what != _CONVERSATION[endpoint]:
            raise _wrong(row, f"it has {what}, and --endpoint {endpoint} takes {_CONVERSATION[endpoint]} or prompt")
        return endpoint, {**body, _CONVERSATION[endpoint]: value}

    def _defaults(self, endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
        if endpoint == "embeddings":
            return {}
        if "max_completion_tokens" in body:  # the other name of the same
            return {name: value for name, value in self.defaults.items() if name != "max_tokens"}
        return self.defaults


def _id(record: dict[str, Any], row: int) -> str:
    found = record.get("custom_id", record.get("id"))
    if found is None:
        return f"line-{row}"
    if type(found) is int:
        found = str(found)
    if not isinstance(found, str) or not 0 < len(found) <= _ID_LENGTH:
        raise _wrong(row, f"its id is not a string of 1 to {_ID_LENGTH} characters")
    return found


def _wrong(row: int, what: str) -> BatchError:
    return BatchError(
        f"line {row} cannot be read: {what}",
        hint="A line is OpenAI's batch line, an object with prompt, messages or input, or a JSON string.",
        line=row,
    )
