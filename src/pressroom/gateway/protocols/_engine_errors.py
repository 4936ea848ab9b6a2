"""What an engine says went wrong, in OpenAI's words."""

from __future__ import annotations

from typing import Any

import orjson

from pressroom.gateway.problems import Problem, server_error

# Statuses that are about the request, and so are the client's to know as they are.
# Of a message; an engine may put a whole prompt into it.
_LONGEST = 2_000
_CLIENT = frozenset((400, 408, 409, 413, 415, 422, 429))


def translated(status: int, body: bytes, *, param: str, retry_after_s: int | None = None) -> Problem:
    """The error of an engine as a Problem. `param` is the field that holds the conversation, `retry_after_s` what its
    Retry-After header says.

    Reads llama.cpp's shape, OpenAI's (vLLM) and plain text. A 5xx of an engine is a 502 or 503 here: it is the gateway
    that answers.
    """
    found = _found(body)
    message = str(found.get("message") or "").strip()[:_LONGEST] or f"The engine answered {status} and gave no reason."
    if _is_context(found, message):
        return _context_exceeded(found, message, param=param)
    if status == 501:
        return Problem(400, message, code="unsupported_parameter")
    code = found.get("code")
    if isinstance(code, str) and code.startswith("vendor_"):
        # The engine that asks vendors says already whose fault it is.
        return server_error(status, message, code=code, retry_after_s=retry_after_s)
    if status in _CLIENT:
        kind = "rate_limit_error" if status == 429 else "invalid_request_error"
        name = found.get("param")
        return Problem(
            status,
            message,
            kind,
            name if isinstance(name, str) else None,
            # llama.cpp repeats the status here; OpenAI's codes are words.
            code if isinstance(code, str) else None,
            retry_after_s,
        )
    if status == 503:
        message = f"The engine is not available: {message}"
        return server_error(503, message, code="engine_unavailable", retry_after_s=retry_after_s or 1)
    return server_error(502, f"The engine failed: {message}", code="engine_error")


def _found(body: bytes) -> dict[str, Any]:
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {"message": body[:500].decode(errors="replace")}
    inner = parsed.get("error", parsed) if isinstance(parsed, dict) else parsed
    if isinstance(inner, dict):
        return inner
    return {"message": inner if isinstance(inner, str) else ""}


def _is_context(found: dict[str, Any], message: str) -> bool:
    # vLLM has no type of its own for it.
    return found.get("type") == "exceed_context_size_error" or "maximum context length is" in message


def _context_exceeded(found: dict[str, Any], message: str, *, param: str) -> Problem:
    allowed, asked = found.get("n_ctx"), found.get("n_prompt_tokens")
    if isinstance(allowed, int) and isinstance(asked, int):
        yours = "messages" if param == "messages" else "prompt"
        message = (
            f"This model's maximum context length is {allowed} tokens. "
            f"However, your {yours} resulted in {asked} tokens. Please reduce the length of the {yours}."
        )
    return Problem(400, message, param=param, code="context_length_exceeded")
