"""Tensors in the formats that were chosen for them: rounded once, kept on disk, and written as often as it takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pressroom.compress.numbers import number_format
from pressroom.compress.rounding import rounded
from pressroom.compress.search._errors import Errors
from pressroom.compress.weights import Changed, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pressroom.compress.weights import Tensor, Weights

# Rows that are rounded at once where nothing of one hangs on the others.
_ROWS = 4_096


class Roundings:
    """Data of tensors in formats, in a folder. Each is whole under its name or not there, so that a search that was
    killed goes on with what it had."""

    def __init__(self, source: Weights, errors: Errors, folder: Path) -> None:
        self._source = source
        self._errors = errors
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def round(self, formats: Mapping[str, str], on_progress: Callable[[int, int], None]) -> dict[str, float]:
        """Round the tensors that are not yet in these formats; what each loses."""
        found: dict[str, float] = {}
        for done, (name, format) in enumerate(formats.items(), start=1):
            tensor = self._source.tensor(name)
            if not self._path(tensor, format).is_file():
                self._make(tensor, format)
                on_progress(done, len(formats))
            found[name] = self._error(tensor, format)
        on_progress(len(formats), len(formats))
        return found

    def write(self, path: Path, formats: Mapping[str, str]) -> int:
        """Write the source with these tensors in these formats; returns the bytes of the file. All were rounded."""
        return write(
            path,
            self._source,
            {
                name: Changed(number_format(format), self._data(self._source.tensor(name), format))
                for name, format in formats.items()
            },
        )

    def kept(self, name: str, format: str) -> tuple[NDArray[np.uint8], float] | None:
        """The data of a tensor in a format, a row each, and what it loses; None where it was not rounded to that."""
        tensor = self._source.tensor(name)
        if not self._path(tensor, format).is_file():
            return None
        return self._data(tensor, format).reshape(tensor.rows, -1), self._error(tensor, format)

    def remove(self) -> None:
        """Remove what was kept."""
        for path in self._folder.iterdir():
            path.unlink(missing_ok=True)
        self._folder.rmdir()

    def _data(self, tensor: Tensor, format: str) -> NDArray[np.uint8]:
        return np.memmap(self._path(tensor, format), dtype=np.uint8, mode="r")

    def _error(self, tensor: Tensor, format: str) -> float:
        return float(json.loads(self._path(tensor, format).with_suffix(".json").read_text())["error"])

    def _path(self, tensor: Tensor, format: str) -> Path:
        return self._folder / f"{tensor.name}-{format}.data"

    def _make(self, tensor: Tensor, name: str) -> None:
        format = number_format(name)
        curvature = self._errors.curvature(tensor)
        path = self._path(tensor, name)
        part = path.with_suffix(".part")
        lost = whole = 0.0
        with part.open("wb") as file:
            for start in range(0, tensor.rows, _ROWS):
                rows = self._source.rows(tensor.name, start, min(start + _ROWS, tensor.rows))
                found = rounded(rows, curvature, format, importance=self._errors.importance(tensor))
                weight = float(curvature.losses(rows).sum())
                lost, whole = lost + found.error * weight, whole + weight
                file.write(found.data.tobytes())
        path.with_suffix(".json").write_text(json.dumps({"error": lost / whole if whole > 0 else 0.0}))
        part.replace(path)
