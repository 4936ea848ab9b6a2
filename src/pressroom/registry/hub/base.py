"""The hub without a server around it: what it is asked, and what it answers. Whoever speaks HTTP carries the bytes.

Everything here is called from worker threads, one call at a time for one request, and may read the disk and the
database. Nothing waits for the client: an answer that is a stream is read piece by piece when the client can take more,
and a body is handed over piece by piece as it comes.

HubError is a PressroomError: the hub refuses, with the HTTP status and the `X-Error-Code` that clients look at.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from pressroom.kernel import PressroomError


@dataclass(frozen=True, kw_only=True, slots=True)
class HubRequest:
    """One request. `path` and `query` are as they came, percent-encoded; names of `headers` are in lower case.

    `origin` is what the client calls this server (`http://127.0.0.1:8080`), for the links in answers. `local`: the
    server listens on loopback only, so that reading needs no key. `peer` is the client's address.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""
    local: bool = True
    peer: str = ""


#: What a hub answers, for people who look for it: paths, with `{id}` for the id of a model.
PATHS = (
    "/{id}",
    "/{id}/commit/{commit}",
    "/{id}/resolve/{revision}/{path}",
    "/api/models",
    "/api/models/{id}",
    "/api/models/{id}/refs",
    "/api/models/{id}/revision/{revision}",
    "/api/models/{id}/tree/{revision}",
    "/api/whoami-v2",
)


class Readable(Protocol):
    """The bytes of an answer, in order. `read` gives at most `size`, and b"" at the end."""

    def read(self, size: int) -> bytes: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """`body`, or `stream` with `length` bytes. To HEAD, and with 304, `length` is said and nothing is sent."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    stream: Readable | None = None
    length: int | None = None


class Sink(ABC):
    """Takes the body of a request. `write` until the end, then `finish`; or `abort`, where the client left.

    With `slow`, `finish` may take minutes. Each raises PressroomError, and is not used any more after it did.
    """

    slow: ClassVar[bool] = False

    @abstractmethod
    def write(self, data: bytes) -> None: ...

    @abstractmethod
    def finish(self) -> Answer: ...

    def abort(self) -> None:  # noqa: B027  many have nothing to let go of
        """Let go of everything; called also after an error."""


@dataclass(frozen=True, slots=True)
class Later:
    """The answer needs work that may take long: `make` it where that stops nobody else."""

    make: Callable[[], Answer]


class HubService(Protocol):
    """What a server mounts."""

    def begin(self, request: HubRequest) -> Answer | Sink | Later:
        """Look at the head of a request. A Sink wants the body; with anything else the body is not wanted.

        Raises:
            PressroomError: it is refused; `refusal` says how.
        """

    def refusal(self, error: PressroomError) -> Answer:
        """The answer that tells a client of this error."""

    def close(self) -> None: ...


class HubError(PressroomError):
    """`status` is the HTTP status, `header_code` the X-Error-Code (may be empty), `headers` go with the answer."""

    code = "hub"

    def __init__(
        self,
        status: int,
        message: str,
        *,
        hint: str = "",
        header_code: str = "",
        headers: Mapping[str, str] | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(message, hint=hint, **facts)
        self.status = status
        self.header_code = header_code
        self.headers = dict(headers or {})
