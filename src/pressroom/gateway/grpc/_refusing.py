"""A problem as the end of a call."""

from __future__ import annotations

from pressroom.gateway.grpc._call import Call
from pressroom.gateway.grpc._heads import Code
from pressroom.gateway.problems import Problem

_CODES = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    413: Code.RESOURCE_EXHAUSTED,
    415: Code.INVALID_ARGUMENT,
    422: Code.INVALID_ARGUMENT,
    429: Code.RESOURCE_EXHAUSTED,
    501: Code.UNIMPLEMENTED,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}


def refuse(call: Call, problem: Problem) -> None:
    """End the call with an error. Where another try makes sense, gRPC's own retries are told when."""
    metadata: tuple[tuple[str, str], ...] = ()
    if problem.retry_after_s is not None:
        metadata = (
            ("retry-after", str(problem.retry_after_s)),
            ("grpc-retry-pushback-ms", str(1000 * problem.retry_after_s)),
        )
    call.end(_CODES.get(problem.status, Code.INTERNAL), problem.message, metadata)
