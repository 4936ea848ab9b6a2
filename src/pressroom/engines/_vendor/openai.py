"""A vendor that speaks OpenAI's API: fields pass through, but for the model's name and the figures of a stream."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import orjson

from pressroom.engines._vendor.protocol import Asked, Protocol, StreamReader, wants_stream
from pressroom.engines._vendor.refusals import dressed_up, invalid, judged, malformed, unsupported
from pressroom.engines._vendor.words import checked_messages, counts, tokens

Scrubbed = Callable[[str], str]

_SAMPLING = frozenset((
    "model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "n", "stop", "seed", "logit_bias",
    "frequency_penalty", "presence_penalty", "user", "logprobs",
))  # fmt: skip
_CHAT = _SAMPLING | {
    "messages", "max_completion_tokens", "top_logprobs", "response_format", "tools", "tool_choice",
    "parallel_tool_calls", "functions", "function_call", "modalities", "audio", "prediction", "reasoning_effort",
    "verbosity", "web_search_options", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention",
}  # fmt: skip
_COMPLETION = _SAMPLING | {"prompt", "best_of", "echo", "suffix"}
_EMBEDDINGS = frozenset(("model", "input", "encoding_format", "dimensions", "user"))


class OpenAI(Protocol):
    """OpenAI, or whoever speaks its API."""

    host = "api.openai.com"
    variable = "OPENAI_API_KEY"
    capabilities: ClassVar[dict[str, bool]] = {
        "chat": True,
        "completions": True,
        "streaming": True,
        "embeddings": True,
        "logprobs": True,
        "json_schema": True,
        "tools": True,
    }

    def headers(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"} if key else {}

    def chat(self, fields: dict[str, Any]) -> Asked:
        checked_messages(fields)
        body = self._passed(fields, _CHAT)
        if self._own and body.get("max_tokens") is not None and body.get("max_completion_tokens") is None:
            # OpenAI's newer models refuse the old name, and all of its models know the new one.
            body["max_completion_tokens"] = body.pop("max_tokens")
        return self._asked("/chat/completions", body, fields, partial(_whole, self._scrubbed))

    def completion(self, fields: dict[str, Any]) -> Asked:
        if fields.get("prompt") is None:
            raise invalid("Missing required parameter: 'prompt'.", param="prompt", code="missing_required_parameter")
        return self._asked("/completions", self._passed(fields, _COMPLETION), fields, partial(_whole, self._scrubbed))

    def embeddings(self, fields: dict[str, Any]) -> Asked:
        if fields.get("input") is None:
            raise invalid("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
        body = self._passed(fields, _EMBEDDINGS)
        return self._asked("/embeddings", body, {}, partial(_embedded, self._scrubbed))

    def _passed(self, fields: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
        """The fields for the vendor. What only engines of one's own know is refused, not ignored."""
        for name, value in fields.items():
            if name not in known and name not in self._extra and value is not None:
                what = f"this model runs at a vendor, whose API does not have {name[:200]!r}."
                raise unsupported(name[:200], what)
        return {**{name: value for name, value in fields.items() if value is not None}, "model": self._model}

    def _asked(
        self,
        path: str,
        body: dict[str, Any],
        fields: dict[str, Any],
        whole: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> Asked:
        stream, usage = wants_stream(fields)
        if stream:
            # The figures are always asked for: whoever pays wants to know, also where the client does not.
            options = body.get("stream_options")
            body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        return Asked(
            path=path,
            body=body,
            stream=stream,
            usage=usage,
            whole=whole,
            reader=lambda: _Reader(self._scrubbed),
        )


class _Reader(StreamReader):
    def __init__(self, scrubbed: Scrubbed) -> None:
        self._scrubbed = scrubbed
        self._open: set[int] = set()
        self._began = False

    def read(self, data: bytes) -> list[dict[str, Any]]:
        if data.strip() == b"[DONE]":
            self.complete = True
            return []
        try:
            found = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise malformed("an event of its stream is not JSON") from None
        if not isinstance(found, dict):
            raise malformed("an event of its stream is not an object")
        _refused(found, self._scrubbed)
        self.usage = counts(found.pop("usage", None)) or self.usage
        choices = found.get("choices")
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise malformed("an event of its stream has no choices")
        for choice in choices:
            self._began = True
            place = choice.get("index")
            place = place if type(place) is int else 0
            if choice.get("finish_reason"):
                self._open.discard(place)
            else:
                self._open.add(place)
        return [found] if choices else []

    def end(self) -> None:
        # Some servers leave [DONE] out; every choice that began must have said why it ended.
        self.complete = self.complete or (self._began and not self._open)
        super().end()


def _refused(found: dict[str, Any], scrubbed: Scrubbed) -> None:
    """Raise what came as an answer and is an error."""
    error = dressed_up(found)
    if error is not None:
        raise judged(*error, scrubbed)


def _whole(scrubbed: Scrubbed, found: dict[str, Any]) -> dict[str, Any]:
    _refused(found, scrubbed)
    choices = found.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise malformed("it has no choices")
    usage = counts(found.get("usage"))
    if usage is None:
        found.pop("usage", None)  # whatever stands there says nothing
        return found
    return {**found, "usage": usage}


def _embedded(scrubbed: Scrubbed, found: dict[str, Any]) -> dict[str, Any]:
    _refused(found, scrubbed)
    if not isinstance(found.get("data"), list):
        raise malformed("it has no embeddings")
    usage = found.pop("usage", None)
    prompt = tokens(usage.get("prompt_tokens")) if isinstance(usage, dict) else None
    if prompt is not None:
        total = tokens(usage.get("total_tokens"))
        found["usage"] = {**usage, "prompt_tokens": prompt, "total_tokens": prompt if total is None else total}
    return found
