"""A request that is refused, in OpenAI's words."""

from __future__ import annotations

from typing import Any

from pressroom.kernel.errors import EngineError


class Refusal(EngineError):
    """The request cannot be answered: `status` of HTTP, and what goes into `{"error": {…}}`."""

    code = "refused"

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        kind: str | None = None,
        type: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.kind = kind
        self.type = type

    def body(self) -> dict[str, Any]:
        """The JSON of it."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.kind}}


def unsupported(param: str, what: str) -> Refusal:
    """It is known, and cannot be done here."""
    return Refusal(f"Unsupported parameter: {what}", param=param, kind="unsupported_parameter")


def wrong(param: str, message: str, kind: str = "invalid_value") -> Refusal:
    """A value that is not one of those allowed."""
    return Refusal(message, param=param, kind=kind)


def too_long(tokens: int, context: int, *, param: str, at_least: bool = False) -> Refusal:
    """The prompt does not fit into the context."""
    yours = {"messages": "messages", "input": "input"}.get(param, "prompt")
    count = f"at least {tokens}" if at_least else str(tokens)
    return Refusal(
        f"This model's maximum context length is {context} tokens. However, your {yours} resulted in {count} tokens. "
        f"Please reduce the length of the {yours}.",
        param=param,
        kind="context_length_exceeded",
    )


def failed(message: str, status: int = 500) -> Refusal:
    """It is not the client's fault."""
    return Refusal(message, status=status, type="server_error", kind="engine_error")
