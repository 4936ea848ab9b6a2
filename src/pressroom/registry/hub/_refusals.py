"""What a client is told when something is not there or not allowed, in the words and headers it looks for."""

from __future__ import annotations

import json

from pressroom.kernel import (
    AccessError,
    DigestMismatchError,
    LockedError,
    NotFoundError,
    PressroomError,
    RefError,
    SourceError,
    StoreFullError,
    WeightsError,
)
from pressroom.registry.base import AnnotationError
from pressroom.registry.hub.base import Answer, HubError

_MOST_HEADER = 1_000
_STATUS: tuple[tuple[type[PressroomError], int], ...] = (
    (AccessError, 403),
    (StoreFullError, 507),  # not one of those that clients try again
    (DigestMismatchError, 400),
    (WeightsError, 400),
    (SourceError, 400),
    (RefError, 400),
    (AnnotationError, 400),
    (NotFoundError, 404),
    (LockedError, 503),
)


def repo_not_found(repo_id: str, hint: str = "") -> HubError:
    return HubError(404, f"there is no model {repo_id!r} here", hint=hint, header_code="RepoNotFound", asked=repo_id)


def revision_not_found(repo_id: str, revision: str, hint: str) -> HubError:
    return HubError(
        404, f"{repo_id} has no revision {revision!r}", hint=hint, header_code="RevisionNotFound", asked=revision
    )


def entry_not_found(path: str, commit: str) -> HubError:
    # The commit lets clients remember that this file is not there.
    return HubError(
        404,
        f"there is no file {path!r} at this revision",
        header_code="EntryNotFound",
        headers={"x-repo-commit": commit},
        asked=path,
    )


def bad_request(message: str, hint: str = "") -> HubError:
    return HubError(400, message, hint=hint)


def too_large(message: str, hint: str = "") -> HubError:
    return HubError(413, message, hint=hint)


def refusal(error: PressroomError) -> Answer:
    """The answer that tells a client of this error."""
    status, headers = 500, {}
    if isinstance(error, HubError):
        status, headers = error.status, dict(error.headers)
        if error.header_code:
            headers["x-error-code"] = error.header_code
    else:
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    message = sentence(error)
    headers.setdefault("x-error-message", header_text(message))
    headers["content-type"] = "application/json"
    return Answer(status=status, headers=headers, body=json.dumps({"error": message}).encode())


def sentence(error: PressroomError) -> str:
    """Message and hint as one text."""
    text = error.message[:1].upper() + error.message[1:]
    if text and text[-1] not in ".!?":
        text += "."
    return f"{text} {error.hint}".strip()


def header_text(text: str) -> str:
    """The text as a header may carry it: one line of printable ASCII."""
    shown = "".join(letter if " " <= letter <= "~" else "?" for letter in text)
    return shown[:_MOST_HEADER]
