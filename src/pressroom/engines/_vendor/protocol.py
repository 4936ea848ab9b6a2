"""What a vendor's protocol does: OpenAI's requests into its own, its answers back into OpenAI's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pressroom.engines._vendor.refusals import Refusal


class StreamReader(ABC):
    """Reads one streamed answer. `usage` is what it said of its tokens so far; `complete` once its end was seen."""

    usage: dict[str, Any] | None = None
    complete: bool = False

    @abstractmethod
    def read(self, data: bytes) -> list[dict[str, Any]]:
        """The chunks that the data of an event comes to, in OpenAI's shape but for `model`.

        Raises:
            Refusal: it is an error, or not of the protocol.
        """

    def end(self) -> None:
        """The stream has ended. Raises Refusal where it broke off."""
        if not self.complete:
            message = "The vendor's stream ended before its answer was complete."
            raise Refusal(502, message, code="vendor_error", again=True, down=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request in the vendor's words: where it goes below the address, and how its answer is read. `usage`: the
    client wants the tokens of a stream. `whole` raises Refusal where the answer is not one."""

    path: str
    body: dict[str, Any]
    stream: bool
    usage: bool
    whole: Callable[[dict[str, Any]], dict[str, Any]]
    reader: Callable[[], StreamReader]
    #: Turns a whole answer and a chunk of a chat into those of the endpoint that was asked.
    answer: Callable[[dict[str, Any]], dict[str, Any]] = lambda found: found
    piece: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda found: found


class Protocol(ABC):
    """One model behind one API. `own`: at the vendor that made the API; `extra` are fields beyond OpenAI's that it
    takes; `max_tokens` of an answer where the client sets none and the API wants it; `scrubbed` takes keys out of
    texts."""

    #: The host that the variable `variable` is a key of.
    host: ClassVar[str]
    variable: ClassVar[str]
    #: What most of its models can do.
    capabilities: ClassVar[dict[str, bool]]

    def __init__(
        self, model: str, *, own: bool, extra: frozenset[str], max_tokens: int, scrubbed: Callable[[str], str]
    ) -> None:
        self._model = model
        self._own = own
        self._extra = extra
        self._max_tokens = max_tokens
        self._scrubbed = scrubbed

    @abstractmethod
    def headers(self, key: str) -> dict[str, str]:
        """The headers of a request; without a key where it is ''."""

    @abstractmethod
    def chat(self, fields: dict[str, Any]) -> Asked:
        """A request to `/v1/chat/completions`. Raises Refusal."""

    @abstractmethod
    def completion(self, fields: dict[str, Any]) -> Asked:
        """A request to `/v1/completions`, as that endpoint of the vendor. Raises Refusal."""

    @abstractmethod
    def embeddings(self, fields: dict[str, Any]) -> Asked:
        """A request to `/v1/embeddings`. Raises Refusal."""


def wants_stream(fields: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the answer is to be streamed, and with its tokens."""
    stream = fields.get("stream") is True
    options = fields.get("stream_options")
    return stream, stream and isinstance(options, dict) and options.get("include_usage") is True
