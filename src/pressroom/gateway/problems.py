"""An error as OpenAI's clients expect it: `{"error": {message, type, param, code}}`."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from pressroom.gateway._sse import framed


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a request is refused or failed. `retry_after_s` becomes a Retry-After header, `allow` an Allow header."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    retry_after_s: int | None = None
    allow: str | None = None

    def body(self) -> bytes:
        """The JSON of it."""
        return orjson.dumps(
            {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}
        )

    def headers(self) -> bytes:
        """Its header lines."""
        lines = b"content-type: application/json\r\n"
        if self.status == 401:
            lines += b"www-authenticate: Bearer\r\n"
        if self.retry_after_s is not None:
            lines += b"retry-after: %d\r\n" % self.retry_after_s
        if self.allow is not None:
            lines += b"allow: %b\r\n" % self.allow.encode()
        return lines

    def event(self) -> bytes:
        """It as an event of a stream that has begun."""
        return framed(self.body())


def server_error(status: int, message: str, *, code: str | None = None, retry_after_s: int | None = None) -> Problem:
    """A problem that is not the client's."""
    return Problem(status, message, "server_error", None, code, retry_after_s)
