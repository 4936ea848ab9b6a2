"""What `/v1/files` and `/v1/batches` answer, without a server around it. Called from worker threads."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote

import orjson

from pressroom.gateway.batches import _shapes as shapes
from pressroom.gateway.batches._batches import Batches
from pressroom.gateway.batches._files import FileStore
from pressroom.gateway.batches._multipart import boundary_of
from pressroom.gateway.batches._upload import Upload, expires_after, too_large
from pressroom.gateway.batches.base import ENDPOINTS, NOBODY, Asker, BatchError, FileRecord, Status
from pressroom.gateway.problems import Problem
from pressroom.kernel import PressroomError, Workspace
from pressroom.registry.hub.base import Answer, HubRequest, Later, Sink

PREFIX = "/openai"
# What a form has beside the bytes of its file.
_FORM_ROOM = 64 << 10
_WINDOW = re.compile(r"([1-9][0-9]{0,3})([hd])")
_HOUR_S = {"h": 3_600, "d": 86_400}
_LONGEST_WINDOW_S = 30 * 86_400
_FIELDS = ("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after")
_PAIRS, _KEY_LENGTH, _VALUE_LENGTH = 16, 64, 512

Found = Answer | Sink | Later


class BatchService:
    """Answers about the files and batches of one workspace; `wake` is called when there is something to run."""

    def __init__(
        self,
        workspace: Workspace,
        files: FileStore,
        batches: Batches,
        *,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = workspace.settings
        self._files = files
        self._batches = batches
        self._wake = wake
        self._clock = clock

    def begin(self, request: HubRequest, asker: Asker = NOBODY) -> Found:
        """Look at the head of a request. What another owner has is not there for this one. Raises PressroomError."""
        path = request.path.removeprefix(PREFIX).removesuffix("/")
        segments = tuple(unquote(part, errors="replace") for part in path.split("/")[2:])
        method = "GET" if request.method == "HEAD" else request.method
        match (method, *segments):
            case ("POST", "files"):
                return self._upload(request, asker)
            case ("GET", "files"):
                return self._list_files(_Query(request.query), asker.owner)
            case ("GET", "files", file_id):
                return self._answer_file(self._files.get(file_id, owner=asker.owner))
            case ("GET", "files", file_id, "content"):
                return self._content(file_id, asker.owner)
            case ("DELETE", "files", file_id):
                return self._delete(file_id, asker.owner)
            case ("POST", "batches"):
                return _Body(lambda body: self._create(body, asker), most=self._settings.gateway.max_body_bytes)
            case ("GET", "batches"):
                return self._list_batches(_Query(request.query), asker.owner)
            case ("GET", "batches", batch_id):
                return shapes.answer(shapes.shape_of_batch(self._batches.get(batch_id, owner=asker.owner)))
            case ("POST", "batches", batch_id, "cancel"):
                # Its body, if there is one, says nothing, and is read so that the connection can be used on.
                return _Body(lambda _: self._cancel(batch_id, asker.owner), most=self._settings.gateway.max_body_bytes)
        return shapes.of_problem(_not_there(request, segments))

    def refusal(self, error: PressroomError) -> Answer:
        return shapes.refusal(error)

    def close(self) -> None:
        """Nothing is held."""

    # Files.

    def _upload(self, request: HubRequest, asker: Asker) -> Sink:
        most = self._settings.batch.max_file_bytes
        length = request.headers.get("content-length", "")
        expected = int(length) if length.isdigit() else 0
        if expected > most + _FORM_ROOM:
            raise too_large(most)
        boundary = boundary_of(request.headers.get("content-type", ""))
        return Upload(self._files, boundary, most=most, expected=expected, answer=self._answer_file, owner=asker.owner)

    def _answer_file(self, file: FileRecord) -> Answer:
        return shapes.answer(shapes.shape_of_file(file, ends=self._files.ends(file)))

    def _list_files(self, query: _Query, owner: str) -> Answer:
        order = query.one_of("order", ("asc", "desc"), "desc")
        files, more = self._files.list(
            limit=query.limit(10_000, default=10_000),
            owner=owner,
            after=query.text("after"),
            purpose=query.text("purpose"),
            newest_first=order == "desc",
        )
        return shapes.page([shapes.shape_of_file(file, ends=self._files.ends(file)) for file in files], more=more)

    def _content(self, file_id: str, owner: str) -> Answer:
        file, stream = self._files.open(file_id, owner=owner)
        headers = {"content-type": "application/octet-stream", "x-content-type-options": "nosniff"}
        return Answer(headers=headers, stream=stream, length=file.bytes)

    def _delete(self, file_id: str, owner: str) -> Answer:
        self._files.get(file_id, owner=owner)
        users = [batch.id for batch in self._batches.unfinished() if batch.input_file == file_id]
        if users:
            raise BatchError(
                f"{file_id} is the input of {users[0]}, which is not over.",
                hint="Cancel the batch first, or wait for its end.",
                status=409,
                param="id",
                reason="file_in_use",
            )
        self._files.delete(file_id, owner=owner)
        return shapes.answer({"id": file_id, "object": "file", "deleted": True})

    # Batches.

    def _list_batches(self, query: _Query, owner: str) -> Answer:
        batches, more = self._batches.list(limit=query.limit(100, default=20), owner=owner, after=query.text("after"))
        return shapes.page([shapes.shape_of_batch(batch) for batch in batches], more=more)

    def _create(self, body: bytes, asker: Asker) -> Answer:
        fields = _fields(body)
        window = _string(fields, "completion_window")
        found = _WINDOW.fullmatch(window)
        window_s = int(found[1]) * _HOUR_S[found[2]] if found else 0
        if not 0 < window_s <= _LONGEST_WINDOW_S:
            raise BatchError(
                f"Invalid value: '{window[:50]}'. 'completion_window' is '24h', or another number of hours or days up "
                "to '30d'.",
                param="completion_window",
                reason="invalid_value",
            )
        endpoint = _string(fields, "endpoint")
        if endpoint not in ENDPOINTS.values():
            allowed = ", ".join(f"'{each}'" for each in ENDPOINTS.values())
            raise BatchError(
                f"Invalid value: '{endpoint[:100]}'. Supported values are: {allowed}.",
                param="endpoint",
                reason="invalid_value",
            )
        input_file = self._files.get(_string(fields, "input_file_id"), owner=asker.owner, param="input_file_id")
        if input_file.purpose != "batch":
            raise BatchError(
                f"{input_file.id} was not uploaded with the purpose 'batch'.",
                param="input_file_id",
                reason="invalid_file_purpose",
            )
        batch = self._batches.put(
            endpoint=endpoint,
            input_file=input_file.id,
            window=window,
            window_s=window_s,
            metadata=_metadata(fields.get("metadata")),
            results_expire_s=expires_after(fields.get("output_expires_after"), "output_expires_after"),
            now=self._clock(),
            asker=asker,
        )
        self._wake()
        return shapes.answer(shapes.shape_of_batch(batch))

    def _cancel(self, batch_id: str, owner: str) -> Answer:
        self._batches.get(batch_id, owner=owner)
        moved = self._batches.move(
            batch_id,
            [Status.VALIDATING, Status.IN_PROGRESS],
            status=Status.CANCELLING,
            cancelling_at=self._clock(),
        )
        batch = self._batches.get(batch_id, owner=owner)
        if not moved and batch.status not in (Status.CANCELLING, Status.CANCELLED):
            raise BatchError(
                f"Cannot cancel a batch with status '{batch.status.value}'.", status=409, reason="invalid_status"
            )
        self._wake()
        return shapes.answer(shapes.shape_of_batch(batch))


class _Body(Sink):
    """Gathers a body, and answers with what `make` makes of it."""

    def __init__(self, make: Callable[[bytes], Answer], *, most: int) -> None:
        self._make = make
        self._most = most
        self._body = bytearray()

    def write(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > self._most:
            raise BatchError(f"The body of the request is over {self._most} bytes.", status=413)

    def finish(self) -> Answer:
        return self._make(bytes(self._body))


class _Query:
    """The query of a list."""

    def __init__(self, query: str) -> None:
        try:
            self._fields = parse_qs(query, keep_blank_values=True, max_num_fields=20)
        except ValueError as error:
            raise BatchError("The query of the request has too many fields.") from error

    def text(self, name: str) -> str | None:
        return self._fields[name][-1] if self._fields.get(name) and self._fields[name][-1] else None

    def one_of(self, name: str, allowed: tuple[str, ...], default: str) -> str:
        value = self.text(name) or default
        if value not in allowed:
            words = " or ".join(f"'{each}'" for each in allowed)
            raise BatchError(f"'{name}' is {words}.", param=name, reason="invalid_value")
        return value

    def limit(self, most: int, *, default: int) -> int:
        value = self.text("limit")
        if value is None:
            return default
        if not (value.isascii() and value.isdigit() and len(value) < 10 and 1 <= int(value) <= most):
            raise BatchError(f"'limit' is a whole number from 1 to {most}.", param="limit", reason="invalid_value")
        return int(value)


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        what = str(error) if body else "it is empty"
        raise BatchError(f"We could not parse the JSON body of your request: {what}.") from error
    if not isinstance(fields, dict):
        raise BatchError("The body of the request must be a JSON object.")
    for name in fields:
        if name not in _FIELDS:
            raise BatchError(f"Unknown parameter: '{name[:100]}'.", param=name[:100], reason="unknown_parameter")
    return fields


def _string(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if value is None:
        raise BatchError(f"Missing required parameter: '{name}'.", param=name, reason="missing_required_parameter")
    if not isinstance(value, str):
        raise BatchError(f"Invalid type for '{name}': expected a string.", param=name, reason="invalid_type")
    return value


def _metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    good = (
        isinstance(value, dict)
        and len(value) <= _PAIRS
        and all(len(key) <= _KEY_LENGTH for key in value)
        and all(isinstance(text, str) and len(text) <= _VALUE_LENGTH for text in value.values())
    )
    if not good:
        raise BatchError(
            f"'metadata' is an object of at most {_PAIRS} strings of at most {_VALUE_LENGTH} characters, under names "
            f"of at most {_KEY_LENGTH}.",
            param="metadata",
            reason="invalid_value",
        )
    return dict(value)


def _not_there(request: HubRequest, segments: tuple[str, ...]) -> Problem:
    match segments:
        case ("files",) | ("batches",):
            allow = "GET, HEAD, POST"
        case ("files", _):
            allow = "DELETE, GET, HEAD"
        case ("files", _, "content") | ("batches", _):
            allow = "GET, HEAD"
        case ("batches", _, "cancel"):
            allow = "POST"
        case _:
            message = f"Unknown request URL: {request.method} {request.path[:200]}. GET / lists what is answered."
            return Problem(404, message, code="unknown_url")
    message = f"Not allowed to {request.method} on {request.path[:200]}. Allowed: {allow}."
    return Problem(405, message, code="method_not_supported", allow=allow)
