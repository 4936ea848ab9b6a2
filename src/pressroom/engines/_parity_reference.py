"""The distributions that an engine's answers are compared with."""

from __future__ import annotations

import importlib.util
import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pressroom.engines._child_answers import child_answers
from pressroom.engines._parity_prompts import PROMPTS, PROMPTS_VERSION
from pressroom.kernel import EngineError, MissingDependencyError, this_machine
from pressroom.store import inspect, sniff

_log = logging.getLogger(__name__)

# Of a vocabulary of 49,152 these hold 97.8 % or more of the probability after any of our prompts.
_TOP = 4096
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """What should come after a prompt of these tokens: the likeliest tokens with the natural logarithms of their
    probabilities, best first."""

    tokens: tuple[int, ...]
    likeliest: dict[int, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParityReference:
    """The distributions of one version on the prompts, computed by what `by` says. Good for as long as the bytes of the
    version and `prompts_version` are the same, so it may be kept (`to_json`) under the digest and that number."""

    by: str
    vocabulary: int
    expected: tuple[Expected, ...]
    prompts_version: int = PROMPTS_VERSION

    def to_json(self) -> str:
        """One line, about 1 MB."""
        rows = [[list(one.tokens), list(one.likeliest), list(one.likeliest.values())] for one in self.expected]
        return json.dumps(
            {
                "schema": _SCHEMA,
                "prompts_version": self.prompts_version,
                "by": self.by,
                "vocabulary": self.vocabulary,
                "expected": rows,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> ParityReference:
        """Raises EngineError where the text is not from `to_json` of this version: compute it anew."""
        try:
            found = json.loads(text)
            if found["schema"] != _SCHEMA:
                raise ValueError(f"schema {found['schema']!r}")
            return cls(
                by=str(found["by"]),
                vocabulary=int(found["vocabulary"]),
                expected=tuple(
                    Expected(
                        tokens=tuple(int(token) for token in tokens),
                        likeliest={int(i): float(p) for i, p in zip(ids, logprobs, strict=True)},
                    )
                    for tokens, ids, logprobs in found["expected"]
                ),
                prompts_version=int(found["prompts_version"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"the distributions that were kept cannot be read: {error}", hint="Delete the file; it is made again."
            ) from error


def parity_reference(
    model: Path, *, prompts: Sequence[str] = PROMPTS, threads: int = 0, timeout_s: float = 1800.0
) -> ParityReference:
    """Compute the distributions of `model` on the prompts, in a child process that has a copy of the weights for as
    long as it takes: a GGUF file with llama.cpp's library, a folder of safetensors with transformers in float32.

    `threads` 0 takes the physical cores but one.

    Raises:
        EngineError: the model does not load, or the process died or took longer than `timeout_s`.
        MissingDependencyError: the library is not installed.
        WeightsError, NotFoundError, StoreError: the file is damaged or not there.
    """
    path, kind = _weights(model)
    needed = ("xllamacpp",) if kind == "gguf" else ("torch", "transformers")
    for library in needed:
        if importlib.util.find_spec(library) is None:
            raise MissingDependencyError(
                f"the reference for {kind} weights is computed with {library!r}, which is not installed",
                hint="Install it with: pip install 'pressroom[transformers]'"
                if kind != "gguf"
                else "Install it with: pip install xllamacpp",
                library=library,
            )
    task = {
        "model": str(path.absolute()),
        "format": kind,
        "prompts": list(prompts),
        # One less than there are: the checked engine runs beside it, and llama.cpp's threads wait for each other.
        "threads": threads or max(1, this_machine().physical_cores - 1),
        "top": _TOP,
    }
    answers = child_answers(
        "pressroom.engines._parity_child", task, what="the reference cannot be computed", timeout_s=timeout_s
    )
    first: dict[str, Any] = next(answers, {"by": "", "vocabulary": 0})
    expected = tuple(
        Expected(tokens=tuple(answer["tokens"]), likeliest=dict(zip(answer["ids"], answer["logprobs"], strict=True)))
        for answer in answers
    )
    if len(expected) != len(prompts):
        raise EngineError(f"the reference answered {len(expected)} of {len(prompts)} prompts")
    return ParityReference(by=str(first["by"]), vocabulary=int(first["vocabulary"]), expected=expected)


def kept_reference(model: Path, *, digest: str, folder: Path, threads: int = 0) -> ParityReference:
    """`parity_reference` of a version on our prompts, kept in `folder` as `DIGEST-PROMPTSVERSION.json`: computed once.

    A file that cannot be read is made again; one that cannot be written (a full disk) is not an error. Raises what
    `parity_reference` does.
    """
    path = folder / f"{digest}-{PROMPTS_VERSION}.json"
    try:
        return ParityReference.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EngineError) as error:
        _log.warning("%s is made again: %s", path, error)
    found = parity_reference(model, threads=threads)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=folder, delete=False) as file:
            try:
                file.write(found.to_json())
                file.close()
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        _log.warning("the distributions are not kept in %s: %s", path, error.strerror or error)
    return found


def _weights(model: Path) -> tuple[Path, str]:
    """The file or folder to load, and its format."""
    if not model.is_dir():
        return model, inspect(model).format
    ggufs = [path for path in sorted(model.glob("*")) if path.is_file() and sniff(path, path.name) == "gguf"]
    if len(ggufs) == 1 and not any(model.glob("*.safetensors")):
        return ggufs[0], "gguf"
    return model, "safetensors"
