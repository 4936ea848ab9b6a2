"""Files between two steps of a recipe: kept under what they were made from until the recipe is done, so that a run that
takes up a killed one's work does not do the same again.

In compress/steps, in a folder named by the key:
    weights.gguf    the file a step wrote
    done.json       its digest, and what the steps up to it reported: written last
    work            a folder for what the step needs meanwhile, and what is known about its file
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressroom.compress.recipe import Recipe, step_as_dict
from pressroom.compress.steps.base import Report
from pressroom.kernel import RecipeError, StoreError, StoreFullError
from pressroom.kernel.disk import sync, sync_directory

if TYPE_CHECKING:
    from pressroom.compress.weights import Weights

_log = logging.getLogger(__name__)

#: Raised when files that were made before must not be taken up any more.
_SCHEMA = 1
#: Left for that long by nobody who came back, it goes.
_OLD_S = 7 * 24 * 3600.0
_ROWS = 4096
_MOST_NAMED = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """A step that was carried out: its method, what it reported, how long it took, and whether it was `found` done by
    a run before."""

    method: str
    report: Report
    seconds: float
    found: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For `--json`, and as it is kept."""
        return {
            "method": self.method,
            "seconds": round(self.seconds, 1),
            "found": self.found,
            "figures": {name: list(figure) for name, figure in self.report.figures.items()},
            "tensors": [dict(one) for one in self.report.tensors],
            "notes": list(self.report.notes),
        }


def keys(origin: str, recipe: Recipe, text: str) -> list[str]:
    """A key for the file behind each part of the recipe: what it hangs on."""
    text_digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    found, before = [], origin
    for part in recipe.parts:
        said: Any
        if isinstance(part, Recipe):
            said = [part.embedding, [step_as_dict(step) for step in part.steps]]
            calibrates, schema = part.calibrates, _SCHEMA
        else:
            said, calibrates, schema = step_as_dict(part), part.calibrates, part.schema
        seen = [text_digest, recipe.calibration.tokens] if calibrates else []
        before = hashlib.sha256(json.dumps([_SCHEMA, schema, before, said, seen, recipe.seed]).encode()).hexdigest()
        found.append(before[:40])
    return found


class Intermediates:
    """The files of one recipe, under a directory that is this part's alone; the caller holds the lock of the part."""

    def __init__(self, folder: Path, keys: list[str]) -> None:
        self._folder = folder
        self._keys = keys
        for old in self._others():
            with suppress(OSError):
                if time.time() - max(one.stat().st_mtime for one in (old, *old.iterdir())) > _OLD_S:
                    shutil.rmtree(old, ignore_errors=True)

    def weights(self, number: int) -> Path:
        """The file behind part `number` of the recipe."""
        return self._folder / self._keys[number] / "weights.gguf"

    def work(self, number: int) -> Path:
        """The directory of a part's own."""
        found = self._folder / self._keys[number] / "work"
        try:
            found.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{found} cannot be made: {error.strerror}", path=str(found)) from error
        return found

    def found(self) -> tuple[int, list[Done]]:
        """The number of parts that are done already, the last of them with its file, and what they reported."""
        for number in reversed(range(len(self._keys))):
            path = self._folder / self._keys[number] / "done.json"
            try:
                said = json.loads(path.read_text(encoding="utf-8"))
                with self.weights(number).open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != said["sha256"]:
                        raise ValueError("the file is another one")
                return number + 1, [_done(one) for one in said["done"]]
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError) as error:
                _log.warning("%s is made again: %s", path.parent, error)
                shutil.rmtree(path.parent, ignore_errors=True)
        return 0, []

    def finish(self, number: int, done: list[Done]) -> None:
        """The file behind a part is there: say so, and let go of those before it. Raises StoreError."""
        path = self._folder / self._keys[number] / "done.json"
        try:
            with self.weights(number).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            part = path.with_name(f".{uuid.uuid4().hex}.part")
            with part.open("w", encoding="utf-8") as text:
                json.dump({"sha256": digest, "done": [one.as_dict() for one in done]}, text, default=_plain)
                text.flush()
                sync(text.fileno())
            part.replace(path)
            sync_directory(path.parent)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror}", path=str(path)) from error
        self.remove(range(number))

    def remove(self, numbers: Iterable[int] | None = None) -> None:
        """Let go of what belongs to these parts; of all."""
        for number in range(len(self._keys)) if numbers is None else numbers:
            shutil.rmtree(self._folder / self._keys[number], ignore_errors=True)

    def must_have_room(self, sizes: tuple[int, ...], done: int) -> None:
        """Before the work: for every two files that are there at once. Raises StoreFullError."""
        left = sizes[done:]
        needed = max((a + b for a, b in zip(left, [*left[1:], left[-1]], strict=True)), default=0) if left else 0
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise StoreFullError(
                f"{self._folder} has {free / 1e6:,.1f} MB free, and the files of the recipe's steps take "
                f"{needed / 1e6:,.1f} MB",
                hint="Make room there, or move the workspace to another disk.",
                needed=needed,
                free=free,
            )

    def _others(self) -> list[Path]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return [path for path in self._folder.iterdir() if path.is_dir() and path.name not in self._keys]
        except OSError as error:
            raise StoreError(f"{self._folder} cannot be used: {error.strerror}", path=str(self._folder)) from error


def must_be_numbers(written: Weights, after: str) -> None:
    """Raises RecipeError that names the tensors in which something is infinite or not a number."""
    import numpy as np

    from pressroom.compress.weights import readable

    wrong = []
    for name, tensor in written.tensors.items():
        if not readable(tensor):
            continue
        for start in range(0, tensor.rows, _ROWS):
            if not np.isfinite(written.rows(name, start, start + _ROWS)).all():
                wrong.append(name)
                break
    if wrong:
        more = f" and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        raise RecipeError(
            f"{after} made numbers that are infinite or none, in {', '.join(wrong[:_MOST_NAMED])}{more}",
            hint="Nothing was registered. Ask for less of it, or leave these tensors out.",
            tensors=wrong,
        )


def _done(said: Mapping[str, Any]) -> Done:
    figures = {str(name): (value, str(unit), str(how)) for name, (value, unit, how) in said["figures"].items()}
    report = Report(figures=figures, tensors=tuple(said["tensors"]), notes=tuple(said["notes"]))
    return Done(method=str(said["method"]), report=report, seconds=float(said["seconds"]), found=True)


def _plain(value: Any) -> Any:
    """What JSON has no word for: NumPy's numbers and lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{value!r} in a step's report is no plain value")


def linked(source: Path, target: Path) -> None:
    """The same file under a second name, or a copy where the disk knows no links. Raises StoreError."""
    try:
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
    except OSError as error:
        raise StoreError(f"{target} cannot be written: {error.strerror}", path=str(target)) from error
