"""A file as an answer: whole, a range of it or several, or only its head."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import BinaryIO

from pressroom.registry.hub._files import Facts
from pressroom.registry.hub._refusals import refusal
from pressroom.registry.hub.base import Answer, HubError, HubRequest
from pressroom.store import Store

_RANGE = re.compile(r"(\d*)-(\d*)")
# More ranges at once, or ranges that together are more than the file, are answered with the file.
_MOST_RANGES = 32
_MOST_DIGITS = 19


def file_answer(store: Store, facts: Facts, commit: str, request: HubRequest) -> Answer:
    """The answer to GET or HEAD for a file.

    Raises:
        NotFoundError: the store has not its bytes.
    """
    size, etag = facts.entry.size, f'"{facts.etag}"'
    headers = {
        # Never a type that a browser would show: what was pushed may be a page.
        "content-type": "application/octet-stream",
        "x-content-type-options": "nosniff",
        "etag": etag,
        "x-repo-commit": commit,
        "accept-ranges": "bytes",
    }
    if facts.sha256 is not None:
        headers |= {"x-linked-etag": etag, "x-linked-size": str(size)}
    if _matches(request.headers.get("if-none-match"), etag):
        return Answer(status=304, headers=headers, length=size)
    if request.method == "HEAD":
        return Answer(headers=headers, length=size)
    ranges = _ranges(request.headers.get("range"), size)
    condition = request.headers.get("if-range")
    if ranges is None or (condition is not None and condition.strip() != etag):
        return Answer(headers=headers, stream=Pieces(store.open(facts.entry.blob), [(0, size)]), length=size)
    if not ranges:
        error = HubError(416, f"no byte of the range is in this file of {size} bytes")
        error.headers = {**headers, "content-range": f"bytes */{size}"}
        return refusal(error)
    if len(ranges) == 1:
        ((start, length),) = ranges
        headers["content-range"] = f"bytes {start}-{start + length - 1}/{size}"
        pieces = Pieces(store.open(facts.entry.blob), ranges)
        return Answer(status=206, headers=headers, stream=pieces, length=length)
    boundary = secrets.token_hex(16)
    parts: list[bytes | tuple[int, int]] = []
    for start, length in ranges:
        head = f"--{boundary}\r\nContent-Type: application/octet-stream\r\n"
        parts += [f"{head}Content-Range: bytes {start}-{start + length - 1}/{size}\r\n\r\n".encode(), (start, length)]
        parts.append(b"\r\n")
    parts.append(f"--{boundary}--\r\n".encode())
    headers["content-type"] = f"multipart/byteranges; boundary={boundary}"
    total = sum(len(part) if isinstance(part, bytes) else part[1] for part in parts)
    return Answer(status=206, headers=headers, stream=Pieces(store.open(facts.entry.blob), parts), length=total)


class Pieces:
    """Parts of a file, given as (start, length), and bytes between them, one after another."""

    def __init__(self, file: BinaryIO, parts: Sequence[bytes | tuple[int, int]]) -> None:
        self._file = file
        self._parts = list(reversed(parts))

    def read(self, size: int) -> bytes:
        while self._parts:
            part = self._parts.pop()
            if isinstance(part, bytes):
                if len(part) > size:
                    self._parts.append(part[size:])
                if part:
                    return part[:size]
                continue
            start, length = part
            if not length:
                continue
            if self._file.tell() != start:
                self._file.seek(start)
            data = self._file.read(min(size, length))
            if data and len(data) < length:
                self._parts.append((start + len(data), length - len(data)))
            return data
        return b""

    def close(self) -> None:
        self._file.close()


def _matches(condition: str | None, etag: str) -> bool:
    if condition is None:
        return False
    return condition.strip() == "*" or any(
        each.strip().removeprefix("W/") == etag for each in condition.split(",")[:_MOST_RANGES]
    )


def _ranges(header: str | None, size: int) -> list[tuple[int, int]] | None:
    """(start, length) of each range that has a byte in the file; None where the whole file is to be sent."""
    if header is None:
        return None
    unit, equals, rest = header.partition("=")
    if unit.strip().lower() != "bytes" or not equals:
        return None
    wanted = rest.split(",")
    if len(wanted) > _MOST_RANGES:
        return None
    found: list[tuple[int, int]] = []
    for each in wanted:
        match = _RANGE.fullmatch(each.strip())
        if match is None or match[0] == "-" or max(len(match[1]), len(match[2])) > _MOST_DIGITS:
            return None
        if not match[1]:  # the last so many
            length = min(int(match[2]), size)
            start = size - length
        else:
            start = int(match[1])
            if match[2] and int(match[2]) < start:
                return None
            end = min(int(match[2]), size - 1) if match[2] else size - 1
            length = end - start + 1
        if length > 0:
            found.append((start, length))
    return None if len(found) > 1 and sum(length for _, length in found) > size else found
