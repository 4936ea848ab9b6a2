"""What goes wrong between here and a vendor, in OpenAI's words: whose fault it is, and whether to try again."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

_MOST_MESSAGE = 1000
_MOST_WAIT_S = 86_400
_CONTEXT = re.compile(r"(?i)maximum context length|prompt is too long|context[_ ]length[_ ]exceeded|context window")
# Statuses of a vendor that are about the request, and so are the client's to know as they are.
_CLIENT = frozenset((400, 409, 413, 422))
# Passing by themselves: overload, a restart, a gateway in between that gave up.
_PASSING = frozenset((408, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529))


class Refusal(Exception):
    """An answer that is an error. `again`: the same request may succeed in a moment, after the `wait_s` seconds that
    the vendor asks for, if it does. `down`: it says that the vendor is not well, and counts for the circuit breaker.
    `silent`: the connection was closed without a word, as happens to one that was idle for too long."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None,
        type: str = "server_error",
        param: str | None = None,
        retry_after_s: int | None = None,
        wait_s: float | None = None,
        again: bool = False,
        down: bool = False,
        silent: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.type = type
        self.param = param
        self.retry_after_s = retry_after_s
        self.wait_s = wait_s
        self.again = again
        self.down = down
        self.silent = silent

    def body(self) -> bytes:
        """The JSON of it."""
        error: dict[str, Any] = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return orjson.dumps({"error": error})

    def headers(self) -> dict[str, str]:
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> Refusal:
    """The request is wrong."""
    return Refusal(400, message, type="invalid_request_error", param=param, code=code)


def unsupported(param: str | None, what: str) -> Refusal:
    """It asks for what this vendor's API does not have: said, not ignored."""
    return invalid(f"Unsupported parameter: {what}", param=param, code="unsupported_parameter")


def malformed(what: str) -> Refusal:
    """The vendor answered with what is not of its protocol."""
    return Refusal(502, f"The vendor's answer is not usable: {what}.", code="vendor_malformed", down=True)


def from_answer(status: int, body: bytes, headers: Mapping[str, str], scrubbed: Callable[[str], str]) -> Refusal:
    """The vendor's error as one of ours."""
    return judged(status, found(body), scrubbed, retry_after(headers))


def judged(status: int, error: dict[str, Any], scrubbed: Callable[[str], str], wait_s: float | None = None) -> Refusal:
    """The same of an error object. A vendor's message is passed on only where it is about the request."""
    said = scrubbed(str(error.get("message") or "").strip())
    said = said if len(said) <= _MOST_MESSAGE else said[: _MOST_MESSAGE - 1] + "…"
    code = error.get("code") if isinstance(error.get("code"), str) else None
    waits = None if wait_s is None else max(1, min(_MOST_WAIT_S, -int(-wait_s // 1)))
    if status == 429:
        spent = code == "insufficient_quota"
        message = f"The vendor's limit is reached: {said or 'it gave no details'}"
        code = "insufficient_quota" if spent else "rate_limit_exceeded"
        return Refusal(
            429, message, type="rate_limit_error", code=code, retry_after_s=waits, wait_s=wait_s, again=not spent
        )
    if status in _CLIENT:
        if code == "context_length_exceeded" or _CONTEXT.search(said):
            code = "context_length_exceeded"
        name = error.get("param")
        return Refusal(
            status,
            said or f"The vendor refused the request ({status}) and gave no reason.",
            type="invalid_request_error",
            param=scrubbed(name) if isinstance(name, str) else None,
            code=scrubbed(code) if code else None,
        )
    if status in (401, 403):
        # What it says is about our key, often with a part of it: not for the client.
        message = f"The vendor refuses the key of this deployment ({status})."
        return Refusal(502, message, code="vendor_refused_key")
    if status == 402:
        return Refusal(
            502, "The vendor says that the account of this deployment cannot pay (402).", code="vendor_unpaid"
        )
    if status in (404, 405, 410):
        message = f"The vendor does not have the model or the address of this deployment ({status}): {said}"
        return Refusal(502, message, code="vendor_not_found")
    if status in (503, 529):
        message = f"The vendor is overloaded or down ({status})."
        return Refusal(
            503, message, code="vendor_unavailable", retry_after_s=waits or 1, wait_s=wait_s, again=True, down=True
        )
    if status in (408, 504):
        return Refusal(504, f"The vendor timed out ({status}).", code="vendor_timeout", again=True, down=True)
    if 300 <= status < 400:
        message = f"The vendor sends this deployment elsewhere ({status}); its address is not the right one."
        return Refusal(502, message, code="vendor_not_found")
    passing = status in _PASSING
    said = f": {said}" if said else "."
    message = f"The vendor failed ({status}){said}"
    return Refusal(
        502, message, code="vendor_error", retry_after_s=waits, wait_s=wait_s, again=passing, down=status >= 500
    )


def found(body: bytes) -> dict[str, Any]:
    """The error object in a body, in any of the usual shapes; empty where there is none."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}  # a page of a proxy in between: nothing for a client
    inner = parsed.get("error", parsed) if isinstance(parsed, dict) else parsed
    if isinstance(inner, str):
        return {"message": inner}
    if not isinstance(inner, dict):
        return {}
    if "message" not in inner and isinstance(inner.get("detail"), str):
        return {"message": inner["detail"]}
    return inner


def dressed_up(answer: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
    """The status and the error in what came as an answer, with status 200 or as an event; None where it is none."""
    error = answer.get("error")
    if not error:
        return None
    inner = {"message": error} if isinstance(error, str) else error if isinstance(error, dict) else {}
    for value in (inner.get("status"), inner.get("code"), answer.get("status")):
        if isinstance(value, int | str) and str(value).isascii() and str(value).isdigit() and 400 <= int(value) < 600:
            return int(value), inner
    return _BY_TYPE.get(str(inner.get("type")), 502), inner


# What Anthropic calls its errors; OpenAI's have some of these names, too.
_BY_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "server_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a vendor asks to wait; None where it does not say, or says it wrongly."""
    try:
        if "retry-after-ms" in headers:
            return _bounded(float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after", "").strip()
        if not value:
            return None
        if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value):
            return _bounded(float(value))
        return _bounded(email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _bounded(seconds: float) -> float | None:
    return min(max(seconds, 0.0), float(_MOST_WAIT_S)) if seconds == seconds else None
