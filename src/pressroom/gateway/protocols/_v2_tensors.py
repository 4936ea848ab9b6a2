"""Tensors as they travel: what a shape promises against what is there, and the bytes of the binary form.

Tensors here are small (texts, and parameters beside them), so they are lists of Python values. Nothing is decoded
before the shape has said how much it should be, so a body cannot grow by being read.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

#: How many texts one request may carry, and so the most elements of any tensor that is read.
MOST_ELEMENTS = 1_024
_MOST_DIMENSIONS = 8
_INT = "an integer"


class Invalid(Exception):
    """What is wrong with a request. The door that reads it catches it and answers with `status`; `allow` are the
    methods of a 405."""

    def __init__(self, message: str, status: int = 400, *, allow: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.allow = allow


@dataclass(frozen=True, slots=True)
class Kind:
    """A datatype: the code of its elements for `struct`, their size in bytes, their bounds where they are integers."""

    code: str
    size: int
    low: int = 0
    high: int = 0


def _integers(code: str, size: int, *, signed: bool) -> Kind:
    bits = 8 * size
    return Kind(code, size, -(1 << bits - 1), (1 << bits - 1) - 1) if signed else Kind(code, size, 0, (1 << bits) - 1)


KINDS: dict[str, Kind] = {
    "BYTES": Kind("", 0),
    "BOOL": Kind("?", 1),
    "INT8": _integers("b", 1, signed=True),
    "INT16": _integers("h", 2, signed=True),
    "INT32": _integers("i", 4, signed=True),
    "INT64": _integers("q", 8, signed=True),
    "UINT8": _integers("B", 1, signed=False),
    "UINT16": _integers("H", 2, signed=False),
    "UINT32": _integers("I", 4, signed=False),
    "UINT64": _integers("Q", 8, signed=False),
    "FP16": Kind("e", 2),
    "BF16": Kind("", 2),
    "FP32": Kind("f", 4),
    "FP64": Kind("d", 8),
}


@dataclass(slots=True)
class Tensor:
    """An input as it came: `data` is a list (perhaps nested as its shape is), or `bytes` in the binary form."""

    name: str
    datatype: str
    shape: list[int]
    data: Any

    @property
    def called(self) -> str:
        """Its name for a message: a client may make it as long as it likes."""
        return self.name[:80]

    @property
    def shown(self) -> str:
        """Its shape for a message."""
        return str(self.shape)[:80]

    def values(self) -> list[Any]:
        """Its elements in row-major order: `str` or `bytes` for BYTES, else bool, int or float.

        Raises:
            Invalid: the data are not what shape and datatype say.
        """
        count = self.count()
        if isinstance(self.data, bytes | memoryview):
            return _unpacked(self, count)
        if type(self.data) is not list:
            raise Invalid(f"The data of input '{self.called}' must be an array.")
        found = self.data if len(self.shape) < 2 else _flattened(self)
        if len(found) != count:
            raise _miscounted(self, count, len(found))
        if self.datatype == "BYTES":
            for value in found:
                if type(value) is not str and type(value) is not bytes:
                    raise _mistyped(self, value, "a string")
            return found
        return [_number(self, value) for value in found]

    def count(self) -> int:
        """How many elements its shape promises; refused where that is more than is ever read."""
        if self.datatype not in KINDS:
            allowed = ", ".join(KINDS)
            raise Invalid(f"Input '{self.called}' has the datatype '{self.datatype[:40]}'. Datatypes are: {allowed}.")
        if len(self.shape) > _MOST_DIMENSIONS:
            raise Invalid(f"Input '{self.called}' has more than {_MOST_DIMENSIONS} dimensions.")
        count = 1
        for size in self.shape:
            if type(size) is not int or size < 0:
                raise Invalid(f"The shape of input '{self.called}' must be an array of integers, each at least 0.")
            count *= size
        if count > MOST_ELEMENTS:
            raise Invalid(f"Input '{self.called}' has {str(count)[:20]} elements; at most {MOST_ELEMENTS} are taken.")
        return count


def text(tensor: Tensor, value: str | bytes) -> str:
    """An element of a BYTES tensor as text."""
    if isinstance(value, str):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise Invalid(f"Input '{tensor.called}' is not UTF-8.") from None


def text_of_one(data: bytes) -> str | None:
    """The one element of a BYTES tensor in binary; None where it is anything else, for others to say what."""
    if int.from_bytes(data[:4], "little") != len(data) - 4:
        return None
    try:
        return data[4:].decode()
    except UnicodeDecodeError:
        return None


def packed_texts(texts: list[str]) -> bytes:
    """The binary form of a BYTES tensor: each element with its length before it."""
    found = bytearray()
    for each in texts:
        data = each.encode()
        found += len(data).to_bytes(4, "little") + data
    return bytes(found)


def shortest(value: float) -> float:
    """The shortest decimal that is `value` in single precision, so that 0.7 sent as FP32 is asked for as 0.7."""
    if not math.isfinite(value):
        return value
    for digits in (6, 7, 8):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return float(f"{value:.9g}")


def _unpacked(tensor: Tensor, count: int) -> list[Any]:
    data, kind = tensor.data, KINDS[tensor.datatype]
    if tensor.datatype == "BYTES":
        return _unpacked_bytes(tensor, count)
    if len(data) != count * kind.size:
        raise Invalid(
            f"Input '{tensor.called}' of shape {tensor.shown} and datatype {tensor.datatype} takes {count * kind.size} "
            f"bytes, but there are {len(data)}."
        )
    if tensor.datatype == "BF16":  # the upper half of a single
        wide = b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2))
        return [shortest(value) for value in struct.unpack(f"<{count}f", wide)]
    values = list(struct.unpack(f"<{count}{kind.code}", data))
    return [shortest(value) for value in values] if kind.code in "fe" else values


def _unpacked_bytes(tensor: Tensor, count: int) -> list[Any]:
    data, at, found = tensor.data, 0, []
    size = len(data)
    for _ in range(count):
        start = at + 4
        at = start + int.from_bytes(data[at:start], "little")
        if start > size or at > size:
            raise Invalid(f"Input '{tensor.called}' ends before its {count} elements do.")
        found.append(bytes(data[start:at]))
    if at != size:
        raise Invalid(f"Input '{tensor.called}' has {size - at} bytes more than its {count} elements.")
    return found


def _flattened(tensor: Tensor) -> list[Any]:
    """The elements of nested data; flat data stay as they are."""
    rows = tensor.data
    if not rows or type(rows[0]) is not list:
        return rows  # type: ignore[no-any-return]
    for depth, size in enumerate(tensor.shape):
        if len(rows) > MOST_ELEMENTS:
            raise _miscounted(tensor, tensor.count(), len(rows))
        if depth == 0:
            if len(rows) != size:
                raise _misshapen(tensor)
            continue
        flat = []
        for row in rows:
            if type(row) is not list or len(row) != size:
                raise _misshapen(tensor)
            flat += row
        rows = flat
    return rows  # type: ignore[no-any-return]


def _number(tensor: Tensor, value: Any) -> Any:
    kind = KINDS[tensor.datatype]
    if tensor.datatype == "BOOL":
        if type(value) is not bool:
            raise _mistyped(tensor, value, "a boolean")
    elif kind.high:
        if type(value) is not int:
            raise _mistyped(tensor, value, _INT)
        if not kind.low <= value <= kind.high:
            raise Invalid(f"Input '{tensor.called}' has {str(value)[:40]}, which {tensor.datatype} does not hold.")
    elif type(value) not in (int, float):
        raise _mistyped(tensor, value, "a number")
    return value


def _miscounted(tensor: Tensor, count: int, found: int) -> Invalid:
    return Invalid(f"Input '{tensor.called}' of shape {tensor.shown} has {count} elements, but its data have {found}.")


def _misshapen(tensor: Tensor) -> Invalid:
    return Invalid(f"The data of input '{tensor.called}' are not nested as its shape {tensor.shown} says.")


def _mistyped(tensor: Tensor, value: Any, expected: str) -> Invalid:
    return Invalid(f"Input '{tensor.called}' is {tensor.datatype}, so each of its elements must be {expected}.")
