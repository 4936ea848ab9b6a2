"""An upload on its way: the parts of the form, and the file among them straight to the disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pressroom.gateway.batches._files import FileStore, FileWriter
from pressroom.gateway.batches._multipart import Multipart, Part
from pressroom.gateway.batches.base import BatchError, FileRecord
from pressroom.registry.hub.base import Answer, Sink

#: What a file may be for.
PURPOSES = ("batch",)
#: What OpenAI allows as the end of a file, in seconds.
EXPIRES_LOW_S = 3_600
EXPIRES_HIGH_S = 2_592_000

_FIELDS = ("purpose", "file", "expires_after[anchor]", "expires_after[seconds]")
_VALUE_LIMIT = 1_024


class Upload(Sink):
    """Takes the body of `POST /v1/files`; `answer` makes the answer of the file that came."""

    slow: ClassVar[bool] = True  # `finish` waits for the disk

    def __init__(
        self,
        files: FileStore,
        boundary: bytes,
        *,
        most: int,
        expected: int,
        answer: Callable[[FileRecord], Answer],
        owner: str = "",
    ) -> None:
        self._files = files
        self._most = most
        self._expected = expected
        self._answer = answer
        self._owner = owner
        self._form = Multipart(boundary, self)
        self._part = Part("")
        self._values: dict[str, bytearray] = {}
        self._filename = ""
        self._writer: FileWriter | None = None

    def write(self, data: bytes) -> None:
        self._form.feed(data)

    def finish(self) -> Answer:
        self._form.finish()
        purpose = self._purpose()
        expires_s = self._expires()
        if self._writer is None:
            raise BatchError("Missing required parameter: 'file'.", param="file", reason="missing_required_parameter")
        return self._answer(self._writer.commit(purpose, self._filename, expires_s=expires_s, owner=self._owner))

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.abort()

    # What the parser brings.

    def part_begins(self, part: Part) -> None:
        name = part.name[:100]
        if name not in _FIELDS:
            allowed = ", ".join(f"'{field}'" for field in _FIELDS)
            raise BatchError(
                f"Unknown parameter: '{name}'. An upload has {allowed}.", param=name, reason="unknown_parameter"
            )
        if name in self._values or (name == "file" and self._writer is not None):
            raise BatchError(f"The field '{name}' is there twice.", param=name, reason="invalid_value")
        self._part = part
        if name != "file":
            self._values[name] = bytearray()
            return
        if part.filename is None:
            raise BatchError("'file' is not a file: it has no filename.", param="file", reason="invalid_type")
        if "purpose" in self._values:
            self._purpose()  # before a byte of it is written
        self._filename = part.filename
        self._writer = self._files.writer(expected=self._expected)

    def part_data(self, data: bytes) -> None:
        if self._part.name == "file":
            assert self._writer is not None
            if self._writer.size + len(data) > self._most:
                raise too_large(self._most)
            self._writer.write(data)
            return
        value = self._values[self._part.name]
        value += data
        if len(value) > _VALUE_LIMIT:
            name = self._part.name
            raise BatchError(f"The field '{name}' is over {_VALUE_LIMIT} bytes.", param=name, reason="invalid_value")

    def part_ends(self) -> None:
        """Nothing is left to do: what a part is was known when it began."""

    def _value(self, name: str) -> str | None:
        value = self._values.get(name)
        return value.decode(errors="replace").strip() if value is not None else None

    def _purpose(self) -> str:
        purpose = self._value("purpose")
        if purpose is None:
            raise BatchError(
                "Missing required parameter: 'purpose'.", param="purpose", reason="missing_required_parameter"
            )
        if purpose not in PURPOSES:
            allowed = ", ".join(f"'{each}'" for each in PURPOSES)
            raise BatchError(
                f"'{purpose[:100]}' is not a purpose that files are kept for here. Allowed: {allowed}.",
                param="purpose",
                reason="invalid_value",
            )
        return purpose

    def _expires(self) -> int | None:
        anchor, seconds = self._value("expires_after[anchor]"), self._value("expires_after[seconds]")
        if anchor is None and seconds is None:
            return None
        whole = int(seconds) if seconds is not None and seconds.isascii() and seconds.isdigit() else None
        return expires_after({"anchor": anchor, "seconds": whole}, "expires_after")


def expires_after(value: object, param: str) -> int | None:
    """The seconds of an `expires_after` as OpenAI has it. Raises BatchError where it is something else."""
    if value is None:
        return None
    known = isinstance(value, dict) and value.keys() <= {"anchor", "seconds"}
    if not known or not isinstance(value, dict) or value.get("anchor") != "created_at":
        raise BatchError(
            f"'{param}' is an object of 'anchor', which is 'created_at', and 'seconds'.",
            param=param,
            reason="invalid_value",
        )
    seconds = value.get("seconds")
    if type(seconds) is not int or not EXPIRES_LOW_S <= seconds <= EXPIRES_HIGH_S:
        raise BatchError(
            f"'{param}.seconds' is a whole number from {EXPIRES_LOW_S} to {EXPIRES_HIGH_S}.",
            param=f"{param}.seconds",
            reason="invalid_value",
        )
    return seconds


def too_large(most: int) -> BatchError:
    return BatchError(
        f"The file is over {most} bytes. The setting batch.max_file_bytes is the limit.",
        status=413,
        param="file",
        reason="file_too_large",
    )
