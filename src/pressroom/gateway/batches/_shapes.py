"""Files, batches and errors as OpenAI's clients expect them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from pressroom.gateway.batches.base import BatchError, BatchRecord, FileRecord
from pressroom.gateway.problems import Problem, server_error
from pressroom.kernel import PressroomError, StoreFullError
from pressroom.registry.hub.base import Answer

_JSON = {"content-type": "application/json"}


def answer(value: dict[str, Any]) -> Answer:
    return Answer(headers=_JSON, body=orjson.dumps(value))


def page(items: Sequence[dict[str, Any]], *, more: bool) -> Answer:
    """A page of a list."""
    return answer(
        {
            "object": "list",
            "data": list(items),
            "first_id": items[0]["id"] if items else None,
            "last_id": items[-1]["id"] if items else None,
            "has_more": more,
        }
    )


def shape_of_file(file: FileRecord, *, ends: float | None) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created),
        "expires_at": _seconds(ends),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
        # Beside OpenAI's fields.
        "sha256": file.sha256,
    }


def shape_of_batch(batch: BatchRecord) -> dict[str, Any]:
    counts = batch.counts
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": {"object": "list", "data": batch.problems} if batch.problems else None,
        "input_file_id": batch.input_file,
        "completion_window": batch.window,
        "status": batch.status.value,
        "output_file_id": batch.output if batch.has_output else None,
        "error_file_id": batch.errors if batch.has_errors else None,
        "created_at": int(batch.created),
        "in_progress_at": _seconds(batch.in_progress_at),
        "expires_at": int(batch.expires),
        "finalizing_at": _seconds(batch.finalizing_at),
        "completed_at": _seconds(batch.completed_at),
        "failed_at": _seconds(batch.failed_at),
        "expired_at": _seconds(batch.expired_at),
        "cancelling_at": _seconds(batch.cancelling_at),
        "cancelled_at": _seconds(batch.cancelled_at),
        "request_counts": {"total": batch.total, "completed": counts.completed, "failed": counts.failed},
        "usage": {
            "input_tokens": counts.input_tokens,
            "input_tokens_details": {"cached_tokens": counts.cached_tokens},
            "output_tokens": counts.output_tokens,
            "output_tokens_details": {"reasoning_tokens": counts.reasoning_tokens},
            "total_tokens": counts.input_tokens + counts.output_tokens,
        },
        "metadata": batch.metadata,
    }


def refusal(error: PressroomError) -> Answer:
    """The answer that tells a client of an error."""
    message = f"{error.message} {error.hint}".strip() if error.hint else error.message
    if isinstance(error, BatchError):
        return of_problem(Problem(error.status, message, param=error.param, code=error.reason))
    if isinstance(error, StoreFullError):
        return of_problem(server_error(507, message, code="insufficient_storage"))
    return of_problem(server_error(503, message, code=error.code, retry_after_s=5))


def of_problem(problem: Problem) -> Answer:
    headers = dict(_JSON)
    if problem.retry_after_s is not None:
        headers["retry-after"] = str(problem.retry_after_s)
    if problem.allow is not None:
        headers["allow"] = problem.allow
    return Answer(status=problem.status, headers=headers, body=problem.body())


def _seconds(at: float | None) -> int | None:
    return None if at is None else int(at)
