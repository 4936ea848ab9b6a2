"""What a request came to whose client has closed its side: the vendor is left, and the client hears what is known."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp import web

    from pressroom.engines._vendor.asking import Begun

# English text has about four bytes a token in every tokenizer of today, and each message a few tokens around it.
_BYTES_A_TOKEN = 4
_TOKENS_A_MESSAGE = 4
_SAID = ("content", "reasoning", "reasoning_content", "refusal", "tool_calls", "text")


class Work:
    """A request that is worked on in a task."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._fields: dict[str, Any] | None = None
        self.chat = True
        self.stream = False
        #: Pieces of text that came; vendors send about one for each token.
        self.pieces = 0
        #: What the vendor answers, where it has begun.
        self.begun: Begun | None = None
        #: Its answer goes out as it is.
        self.done = False
        #: What the events of its stream have in common, once there was one.
        self.frame: dict[str, Any] = {}
        self.was_cut = False
        #: Where a stream has begun.
        self.response: web.StreamResponse | None = None

    def begin(self, fields: dict[str, Any], *, chat: bool, stream: bool) -> None:
        """It goes to the vendor now."""
        self._fields, self.chat, self.stream = fields, chat, stream

    def cut(self) -> bool:
        """Stop it, by cancelling its task; False where it has not begun or is done, so that nothing is to be said."""
        if self._fields is None or self.done:
            return False
        if not self.was_cut:
            self.was_cut = True
            self._task.cancel()
        return True

    def leave(self) -> None:
        """The task goes on, to say the last words."""
        self._task.uncancel()

    def saw(self, pieces: list[dict[str, Any]]) -> None:
        """These came."""
        self.pieces += sum(
            any((choice.get("delta") or choice).get(name) for name in _SAID)
            for piece in pieces
            for choice in piece["choices"]
        )

    def last_words(self, model: str) -> dict[str, Any]:
        """The event, or the whole answer, that says what it came to."""
        kind = "text_completion" if not self.chat else f"chat.completion{'.chunk' if self.stream else ''}"
        words = {"id": "cut", "object": kind, "created": 0, **self.frame, "model": model, "choices": [], "cut": True}
        usage = self.begun and self.begun.usage
        if self.begun is not None and usage and self.begun.complete:
            return {**words, "usage": usage}
        # Anthropic states the prompt when it begins and the rest at the end: what came since is counted here.
        stated = usage or {"prompt_tokens": estimated_prompt(self._fields or {})}
        prompt, said = int(stated["prompt_tokens"]), max(self.pieces, int(stated.get("completion_tokens") or 0))
        usage = {**stated, "prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}
        usage.setdefault("prompt_tokens_details", {"cached_tokens": 0})
        return {**words, "usage": usage, "estimated": True}


class HalfClosing(asyncio.Protocol):
    """A server's protocol whose connections outlive the end of what the client sends, where `cut` (of its transport)
    says that there is still something to say."""

    def __init__(self, inner: asyncio.Protocol, cut: Callable[[asyncio.BaseTransport], bool]) -> None:
        self._inner = inner
        self._cut = cut
        self._transport: asyncio.BaseTransport | None = None
        self.data_received = inner.data_received  # type: ignore[method-assign]  # the busiest one, without a detour
        self.pause_writing = inner.pause_writing  # type: ignore[method-assign]
        self.resume_writing = inner.resume_writing  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._inner.connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._inner.connection_lost(error)

    def eof_received(self) -> bool:
        return self._transport is not None and self._cut(self._transport)


def estimated_prompt(fields: dict[str, Any]) -> int:
    """About how many tokens the texts of a request are."""
    messages = fields.get("messages")
    if isinstance(messages, list):
        size = sum(_size(message.get("content")) for message in messages if isinstance(message, dict))
        return math.ceil(size / _BYTES_A_TOKEN) + _TOKENS_A_MESSAGE * len(messages)
    return math.ceil(_size(fields.get("prompt", fields.get("input"))) / _BYTES_A_TOKEN)


def _size(content: Any) -> int:
    """Bytes of the texts in a message's content, or in a prompt; a number is a token."""
    if isinstance(content, str):
        return len(content.encode("utf-8", "replace"))
    if isinstance(content, list):
        return sum(_size(part.get("text") if isinstance(part, dict) else part) for part in content)
    return _BYTES_A_TOKEN if type(content) is int else 0
