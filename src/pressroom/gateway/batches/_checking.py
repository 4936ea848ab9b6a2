"""Whether a file is a batch: every line looked at once, in memory that does not grow with the lines' lengths."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson

from pressroom.gateway.batches._disk import breathe
from pressroom.gateway.batches.base import Line

#: Of the problems of a file, the first are told.
MOST_PROBLEMS = 100
_CUSTOM_ID_LENGTH = 512
_ANY_LENGTH = 1 << 40
_BREATH_LINES = 64
_REQUIRED = ("custom_id", "method", "url", "body")
_KEYS = frozenset(_REQUIRED)

Problem = dict[str, Any]


class Interrupted(Exception):
    """The work was not wanted any more."""


@dataclass(kw_only=True, slots=True)
class Checked:
    """What was found in a file: the requests in it, the one model they are for (None: several), what is wrong."""

    total: int = 0
    model: str | None = None
    problems: list[Problem] = field(default_factory=list)


def numbered_lines(file: IO[bytes], *, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """The lines that are not blank, with their numbers from 1; None for one over `limit` bytes, which is the last."""
    number = 0
    while line := file.readline(limit + 2):
        number += 1
        if len(line.rstrip(b"\r\n")) > limit:
            yield number, None
            return
        if not number % _BREATH_LINES:
            breathe()
        if not line.isspace():
            yield number, line


def check(path: Path, endpoint: str, *, line_limit: int, wanted: Callable[[], bool]) -> Checked:
    """Look at every line of a batch for `endpoint`.

    Raises:
        Interrupted: `wanted` said no.
    """
    found = Checked()
    ids = _Ids()
    models: set[str] = set()
    with path.open("rb") as file:
        for number, line in numbered_lines(file, limit=line_limit):
            if not number % _BREATH_LINES and not wanted():
                raise Interrupted
            if line is None:
                found.problems.append(_problem("line_too_long", f"This line is over {line_limit} bytes.", number))
                break
            record = _parsed(line)
            problem = _wrong(record, endpoint)
            if problem is None:
                assert isinstance(record, dict)
                ids.add(record["custom_id"], number)
                if len(models) < 2:
                    models.add(record["body"]["model"])
                found.total += 1
            elif len(found.problems) < MOST_PROBLEMS:
                found.problems.append({**problem, "line": number})
            else:
                break
    found.problems += ids.repeated(path, line_limit)[: MOST_PROBLEMS - len(found.problems)]
    found.problems.sort(key=lambda problem: problem["line"] or 0)
    if not found.total and not found.problems:
        found.problems.append(_problem("empty_file", "The input file has no requests.", None))
    found.model = models.pop() if len(models) == 1 else None
    return found


def lines_of(path: Path, *, prefix: str) -> Iterator[Line]:
    """The requests of a file that passed `check`, in order. A result's `id` names the batch and the request."""
    with path.open("rb") as file:
        for number, (_, line) in enumerate(numbered_lines(file, limit=_ANY_LENGTH)):
            assert line is not None, "the file was checked"
            record = orjson.loads(line)
            yield Line(
                number=number,
                custom_id=record["custom_id"],
                path=record["url"],
                body=orjson.dumps(record["body"]),
                tag=f"{prefix}_{number:08x}",
            )


def _parsed(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return None


def _wrong(record: Any, endpoint: str) -> Problem | None:
    """What is wrong with one request, in OpenAI's words; None where nothing is."""
    if not isinstance(record, dict):
        return _problem("invalid_json_line", "This line is not parseable as a JSON object.")
    for name in _REQUIRED:
        if name not in record:
            return _problem("missing_required_parameter", f"Missing required parameter: '{name}'.", param=name)
    if not record.keys() <= _KEYS:
        name = next(name for name in record if name not in _KEYS)[:100]
        return _problem("unknown_parameter", f"Unknown parameter: '{name}'.", param=name)
    custom_id, body = record["custom_id"], record["body"]
    if type(custom_id) is not str or not 0 < len(custom_id) <= _CUSTOM_ID_LENGTH:
        message = f"'custom_id' must be a string of 1 to {_CUSTOM_ID_LENGTH} characters."
        return _problem("invalid_type", message, param="custom_id")
    if record["method"] != "POST":
        return _problem("invalid_method", "The only method of a batch is 'POST'.", param="method")
    if record["url"] != endpoint:
        message = f"The URL of this request does not match the endpoint of the batch, {endpoint}."
        return _problem("mismatched_url", message, param="url")
    if not isinstance(body, dict):
        return _problem("invalid_type", "'body' must be an object.", param="body")
    if type(body.get("model")) is not str or not body["model"]:
        return _problem("missing_required_parameter", "Missing required parameter: 'body.model'.", param="body.model")
    try:
        orjson.dumps(body)
    except orjson.JSONEncodeError:
        return _problem("invalid_value", "'body' is nested too deep.", param="body")
    if body.get("stream"):
        return _problem("invalid_value", "Answers of a batch are not streamed.", param="body.stream")
    return None


def _problem(code: str, message: str, line: int | None = None, *, param: str | None = None) -> Problem:
    return {"code": code, "message": message, "param": param, "line": line}


class _Ids:
    """The custom ids of a file: 16 bytes for each, and the file itself where two may be equal."""

    def __init__(self) -> None:
        # Keyed, so that nobody can make many ids that look equal and have each pair compared.
        self._key = os.urandom(16)
        self._hashes = array("Q")
        self._lines = array("Q")

    def add(self, custom_id: str, line: int) -> None:
        self._hashes.append(self._hash(custom_id))
        self._lines.append(line)

    def repeated(self, path: Path, line_limit: int) -> list[Problem]:
        """A problem for each line whose id an earlier one has."""
        import numpy as np

        if len(self._hashes) < 2:
            return []
        hashes = np.frombuffer(self._hashes, dtype=np.uint64)
        lines = np.frombuffer(self._lines, dtype=np.uint64)
        order = np.argsort(hashes, kind="stable")
        equal = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
        later = np.sort(lines[order][equal + 1])[:MOST_PROBLEMS]
        if not len(later):
            return []
        # Equal hashes are most likely equal ids; the file says so for certain.
        suspects = set(np.unique(hashes[order][equal]).tolist())
        seen: set[str] = set()
        found = []
        with path.open("rb") as file:
            for number, line in numbered_lines(file, limit=line_limit):
                if line is None or number > int(later[-1]):
                    break
                record = _parsed(line)
                custom_id = record.get("custom_id") if isinstance(record, dict) else None
                if not isinstance(custom_id, str) or self._hash(custom_id) not in suspects:
                    continue
                if custom_id in seen:
                    message = "The custom_id for this request is a duplicate of another request's."
                    found.append(_problem("duplicate_custom_id", message, number, param="custom_id"))
                seen.add(custom_id)
        return found

    def _hash(self, custom_id: str) -> int:
        digest = hashlib.blake2b(custom_id.encode(errors="surrogatepass"), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest, "little")
