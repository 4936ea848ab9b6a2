"""A small client of the gateway for `ask`, `chat` and `up`: standard library only, so it starts fast."""

from __future__ import annotations

import http.client
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pressroom.kernel import DeployError, PressroomError, SettingsError, rights, settings

# How long the gateway may be silent between two pieces of an answer.
_SILENCE_S = 600.0
# What a header can carry: also keys that are not ours, of something in front of the gateway.
_KEY = re.compile(r"[\x21-\x7e]{1,4096}")


class AnswerError(PressroomError):
    """The gateway answered with an error; `code` is the one of its protocol."""

    code = "answer"


@dataclass(kw_only=True, slots=True)
class Answer:
    """What a question cost: `ttft_s` from sending to the first piece of text, `seconds` to the last."""

    text: str = ""
    model: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    ttft_s: float = 0.0
    seconds: float = 0.0
    #: `exact` or `meaning;0.97` where the gateway gave an answer that it had kept; nothing was generated then.
    cache: str = ""

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over the time from the first to the last; over all of it where there was only one."""
        writing = self.seconds - self.ttft_s
        if self.completion_tokens > 1 and writing > 0:
            return (self.completion_tokens - 1) / writing
        return self.completion_tokens / self.seconds if self.seconds else 0.0

    def figures(self) -> str:
        """One line for people."""
        cut = " (cut there: --max-tokens)" if self.finish_reason == "length" else ""
        if self.cache:
            return (
                f"{self.completion_tokens} tokens{cut}, from the cache ({self.cache}), in {self.ttft_s * 1000:.0f} ms"
            )
        return (
            f"{self.completion_tokens} tokens{cut}, {self.tokens_per_second:.1f} tokens/s, "
            f"first token after {self.ttft_s * 1000:.0f} ms"
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "model": self.model,
            "finish_reason": self.finish_reason,
            "usage": {
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.completion_tokens,
                "cached_tokens": self.cached_tokens,
            },
            "cache": self.cache or None,
            "tokens_per_second": None if self.cache else round(self.tokens_per_second, 2),
            "ttft_ms": round(self.ttft_s * 1000, 2),
            "seconds": round(self.seconds, 4),
        }


def api_key(environ: Mapping[str, str] | None = None) -> str:
    """The key that the environment has for the gateway, '' where it has none.

    Raises:
        SettingsError: it cannot be a key. The message does not quote it.
    """
    found = (os.environ if environ is None else environ).get(settings.KEY_VARIABLE, "").strip()
    if found and not _KEY.fullmatch(found):
        raise SettingsError(
            f"what {settings.KEY_VARIABLE} holds cannot be a key: spaces, line breaks, letters that are not ASCII, or "
            "too many of them",
            hint=rights.NEEDS_KEY,
        )
    return found


def stream_chat(url: str, body: dict[str, Any], answer: Answer) -> Iterator[str]:
    """Ask `POST {url}/v1/chat/completions` with the key of the environment, and yield the pieces of text as they come;
    `answer` fills up meanwhile.

    Closing the iterator closes the connection, and so ends the generation.

    Raises:
        AnswerError: the gateway or the engine said no.
        DeployError: nobody answers at `url`, or the connection broke.
        SettingsError: as `api_key`.
    """
    headers, key = {"Content-Type": "application/json"}, api_key()
    if key:
        headers["Authorization"] = f"Bearer {key}"
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_SILENCE_S)
    payload = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
    began = time.perf_counter()
    try:
        connection.request("POST", "/v1/chat/completions", payload, headers)
        response = connection.getresponse()
        if response.status != 200:
            raise _refused(response.status, response.read())
        answer.cache = response.getheader("pressroom-cache", "")
        for record in _events(response):
            if "error" in record:
                raise _refused(502, json.dumps(record).encode())
            piece = _take(record, answer)
            if piece:
                answer.seconds = time.perf_counter() - began
                answer.ttft_s = answer.ttft_s or answer.seconds
                answer.text += piece
                yield piece
    except (OSError, http.client.HTTPException) as error:
        raise DeployError(
            f"the gateway at {url} did not answer to the end: {error}", hint="`press ps` shows what runs."
        ) from error
    finally:
        connection.close()


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            record = json.loads(data)
            if isinstance(record, dict):
                yield record


def _take(record: dict[str, Any], answer: Answer) -> str:
    answer.model = record.get("model") or answer.model
    usage = record.get("usage")
    if usage:
        answer.prompt_tokens = usage.get("prompt_tokens", 0)
        answer.completion_tokens = usage.get("completion_tokens", 0)
        answer.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    choices = record.get("choices") or []
    if not choices:
        return ""
    answer.finish_reason = choices[0].get("finish_reason") or answer.finish_reason
    return (choices[0].get("delta") or {}).get("content") or ""


def _refused(status: int, body: bytes) -> AnswerError:
    try:
        found = json.loads(body)["error"]
        message, code = str(found["message"]), found.get("code") or found.get("type")
    except (ValueError, KeyError, TypeError):
        message, code = body.decode(errors="replace")[:500] or "no reason given", None
    return AnswerError(message, hint=rights.NEEDS_KEY if status == 401 else "", status=status, reason=code)
