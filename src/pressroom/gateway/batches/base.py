"""What a batch is: the records that travel, the words of the protocol, and the one error.

A batch is a file of requests, one JSON object a line, answered by the gateway like anybody else's. Its results are
lines, too, appended as they come; what is in them decides what is still to do, so a run that is cut goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from pressroom.kernel import PressroomError

if TYPE_CHECKING:
    from pressroom.gateway.admission import Caller

#: The endpoints a batch may ask, by the short names that `press batch --endpoint` takes.
ENDPOINTS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
}


class Status(StrEnum):
    """Where a batch is, in OpenAI's words."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self in (Status.FAILED, Status.COMPLETED, Status.EXPIRED, Status.CANCELLED)


class BatchError(PressroomError):
    """A request about files or batches is refused, or a run cannot go on. `status`, `param` and `reason` are the HTTP
    status, and OpenAI's `param` and `code`."""

    code = "batch"

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        status: int = 400,
        param: str | None = None,
        reason: str | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(message, hint=hint, **facts)
        self.status = status
        self.param = param
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Asker:
    """Who sends a request about files and batches. What is made belongs to `owner`: its team where the key has one,
    else the key; '' stands for whoever has none. `key` is the name of the key."""

    owner: str = ""
    key: str = ""

    @staticmethod
    def of(caller: Caller) -> Asker:
        """The asker behind a request of the gateway."""
        owner = f"team:{caller.team}" if caller.team else f"key:{caller.key}" if caller.key else ""
        return Asker(owner, caller.key)


#: Whoever has no key.
NOBODY = Asker()


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """A file that is held. `filename` is what its sender called it and names nothing here; times are seconds since the
    epoch; `expires` is None where its sender did not ask for an end."""

    id: str
    purpose: str
    filename: str
    bytes: int
    sha256: str
    created: float
    expires: float | None = None
    owner: str = ""


@dataclass(kw_only=True, slots=True)
class Counts:
    """What came of the lines of a batch, and the tokens they took."""

    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def done(self) -> int:
        return self.completed + self.failed

    def add(self, *, status: int, body: Any) -> None:
        """Count one answer; `status` 0 stands for none."""
        if status == 200:
            self.completed += 1
        else:
            self.failed += 1
        usage = body.get("usage") if isinstance(body, dict) else None
        if isinstance(usage, dict):
            self.input_tokens += _whole(usage, "prompt_tokens")
            self.output_tokens += _whole(usage, "completion_tokens")
            self.cached_tokens += _whole(usage.get("prompt_tokens_details"), "cached_tokens")
            self.reasoning_tokens += _whole(usage.get("completion_tokens_details"), "reasoning_tokens")


def _whole(record: Any, name: str) -> int:
    value = record.get(name) if isinstance(record, dict) else None
    return value if type(value) is int else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRecord:
    """A batch as the database has it. `output` and `errors` are the ids under which its results are written from the
    beginning; they are shown, and are files like any other, once it is over and there is something in them. `owner` is
    the asker's, and its requests are made for the key `key_name`."""

    id: str
    endpoint: str
    input_file: str
    window: str
    status: Status
    created: float
    expires: float
    metadata: dict[str, str] | None = None
    problems: list[dict[str, Any]] = field(default_factory=list)
    model: str | None = None
    total: int = 0
    counts: Counts = field(default_factory=Counts)
    output: str = ""
    errors: str = ""
    has_output: bool = False
    has_errors: bool = False
    results_expire_s: int | None = None
    in_progress_at: float | None = None
    finalizing_at: float | None = None
    completed_at: float | None = None
    failed_at: float | None = None
    expired_at: float | None = None
    cancelling_at: float | None = None
    cancelled_at: float | None = None
    owner: str = ""
    key_name: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a batch. `number` counts requests from 0; `tag` goes into the `id` of its result and says which
    request that answered."""

    number: int
    custom_id: str
    path: str
    body: bytes
    tag: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a line: the answer of the gateway, or, with `status` 0, the `error` that there is none."""

    line: Line
    status: int
    request_id: str = ""
    body: Any = None
    error: dict[str, str] | None = None

    @property
    def ok(self) -> bool:
        return self.status == 200

    def record(self) -> dict[str, Any]:
        """It as a line of a result file, in OpenAI's format."""
        response = None
        if self.status:
            response = {"status_code": self.status, "request_id": self.request_id, "body": self.body}
        return {
            "id": f"batch_req_{self.line.tag}",
            "custom_id": self.line.custom_id,
            "response": response,
            "error": self.error,
        }
