"""The importance of columns as llama.cpp's tools take it: their first format, `.dat`.

    int32 entries; each: int32 length and bytes of the name, int32 chunks, int32 count, count x float32 (mean x chunks)
    int32 chunks; int32 length and bytes of where the text is from

All little-endian. A tensor of several matrices has their columns one after the other.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pressroom.compress.calibrate._file import making
from pressroom.compress.calibrate.base import Calibration
from pressroom.kernel import MalformedWeightsError, StoreError

_INT = struct.Struct("<i")
_MOST_NAME = 4096


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Importance:
    """What such a file holds: `moments` by tensor, float32 and flat, over `chunks` chunks of the text `source`."""

    moments: dict[str, NDArray[np.float32]]
    chunks: int
    source: str


def write_imatrix(path: Path, calibration: Calibration) -> None:
    """Write the moments for `llama-quantize --imatrix`, whole or not at all.

    A matrix that saw nothing gets ones, as llama.cpp does: every column matters the same. Raises StoreError.
    """
    chunks = max(1, calibration.windows)
    parts = [_INT.pack(len(calibration.moments))]
    for name, moments in sorted(calibration.moments.items()):
        unseen = calibration.positions[name] == 0
        values = moments.reshape(len(unseen), -1).copy()
        values[unseen] = 1.0
        values *= np.float32(chunks)
        raw = name.encode()
        parts += [_INT.pack(len(raw)), raw, _INT.pack(chunks), _INT.pack(values.size), values.astype("<f4").tobytes()]
    source = calibration.text_digest.encode()
    parts += [_INT.pack(chunks), _INT.pack(len(source)), source]
    data = b"".join(parts)
    with making(path) as fd:
        written = 0
        while written < len(data):
            written += os.pwrite(fd, data[written:], written)


def read_imatrix(path: Path) -> Importance:
    """Read such a file, this part's or llama.cpp's. Raises MalformedWeightsError and StoreError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        if not 0 <= count <= len(data) - at:
            raise MalformedWeightsError(
                f"{path} is not an importance matrix in llama.cpp's first format: it ends before its contents do",
                hint="Newer tools write GGUF: have them write the other with --output-format dat.",
            )
        at += count
        return data[at - count : at]

    def number() -> int:
        return int(_INT.unpack(take(_INT.size))[0])

    moments: dict[str, NDArray[np.float32]] = {}
    for _ in range(number()):
        length = number()
        name = take(length if length <= _MOST_NAME else -1).decode(errors="replace")
        chunks, count = number(), number()
        values = np.frombuffer(take(4 * count), "<f4").astype(np.float32)
        moments[name] = values / np.float32(chunks) if chunks > 0 else values
    if at == len(data):  # the oldest end here
        return Importance(moments=moments, chunks=0, source="")
    return Importance(moments=moments, chunks=number(), source=take(number()).decode(errors="replace"))
