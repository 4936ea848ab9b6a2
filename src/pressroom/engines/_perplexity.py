"""Perplexity of a GGUF model on a text, in llama.cpp's convention."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from pressroom.engines._child_answers import child_answers
from pressroom.kernel import EngineError, MissingDependencyError, this_machine

WINDOW = 512
# A window takes a second or two here; one that takes this long is stuck, or far too large for the machine.
_WINDOW_TIMEOUT_S = 1800.0
# How many windows a process may be asked for that is asked again and again.
_MANY = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Perplexity:
    """`value` is exp of the mean negative log-probability a token, `stderr` its standard error (of the tokens as if
    they were independent, as llama.cpp says it), over `tokens` scored tokens in `windows` windows.

    `kl` is the mean Kullback-Leibler divergence from a reference's distributions at the same places to this model's, in
    nats, `kl_stderr` its standard error by windows (places of one window are not independent), `kl_p99` its 99th
    percentile over the places, and `top1` the share of places where both hold the same token for the likeliest; None
    without a reference, or where `unlike` says that they cannot be compared. `kl_of_windows` are the means of the
    windows, for comparing two models pair by pair.
    """

    value: float
    stderr: float
    tokens: int
    windows: int
    bos: bool
    version: str
    kl: float | None = None
    kl_stderr: float | None = None
    kl_p99: float | None = None
    top1: float | None = None
    top1_stderr: float | None = None
    kl_of_windows: tuple[float, ...] = ()
    unlike: str = ""

    @property
    def how(self) -> str:
        """How it was measured, in words."""
        begins = "begun with the model's BOS token and " if self.bos else ""
        return (
            f"llama.cpp's convention: the first {self.windows} windows of {WINDOW} tokens, each {begins}scored on its "
            f"second half ({self.tokens} tokens in all)"
        )


def perplexity(
    model: Path,
    text: str,
    *,
    windows: int,
    threads: int = 0,
    skip: int = 0,
    reference: Path | None = None,
    kept: IO[bytes] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Measure on the first `windows` windows of the text (fewer where it is shorter), in a child process; with a
    `reference` model, how far this one's predictions are from that one's as well.

    `threads` 0 takes the physical cores; `on_progress` gets (windows done, windows in all). The first `skip` tokens of
    the text are left out. What the reference computed is kept in the file `kept` and read from there the next time (4
    bytes for each of the vocabulary at each place that is scored): a file that is not empty must come of the same
    reference, text and skip.

    Raises:
        EngineError: the model does not load, the text is shorter than one window, or the process died.
        MissingDependencyError: llama.cpp is not installed.
    """
    _must_have_llama()
    task = {**_task(text_windows=windows, skip=skip, threads=threads, reference=reference), "model": _absolute(model)}
    return _read(_answers(task, text, kept), on_progress)


class Beside:
    """Several models compared with one, in one child process: the reference is computed once. Use it with `with`."""

    def __init__(
        self,
        reference: Path,
        text: str,
        *,
        windows: int,
        skip: int = 0,
        threads: int = 0,
        folder: Path | None = None,
    ) -> None:
        """Each is measured on the first `windows` windows of the text behind its first `skip` tokens; `threads` 0 takes
        the physical cores. `folder` has room for what the reference computes: for a vocabulary of 49,152 it is 50 MB a
        window.

        Raises:
            MissingDependencyError: llama.cpp is not installed.
        """
        _must_have_llama()
        self._kept = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed in `close`
        self._theirs, self._ours = os.pipe()
        task = _task(text_windows=windows, skip=skip, threads=threads, reference=reference)
        self._answers = _answers({**task, "asks": self._theirs}, text, self._kept, asks=self._theirs)

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def measure(self, model: Path, *, windows: int | None = None) -> Perplexity:
        """Measure one model, on fewer `windows` if asked.

        Raises:
            EngineError: as `perplexity`. Nothing can be measured afterwards.
        """
        ask = {"model": _absolute(model), **({} if windows is None else {"windows": windows})}
        os.write(self._ours, json.dumps(ask).encode() + b"\n")
        return _read(self._answers, None)

    def close(self) -> None:
        """End the process."""
        self._answers.close()
        for fd in (self._ours, self._theirs):
            with suppress(OSError):
                os.close(fd)
        self._kept.close()


def _read(answers: Iterator[dict[str, Any]], on_progress: Callable[[int, int], None] | None) -> Perplexity:
    """What is said of one model."""
    log_probabilities: list[float] = []
    compared: list[Compared] = []
    first = next(answers)
    total = int(first["windows"])
    for done, answer in enumerate(answers, start=1):
        if "done" in answer:
            break
        log_probabilities += answer["log_probabilities"]
        if "divergences" in answer:
            compared.append(Compared(answer["divergences"], answer["same"]))
        if on_progress is not None:
            on_progress(done, total)
    found = summarised(
        log_probabilities, compared, windows=total, bos=bool(first["bos"]), version=str(first["version"])
    )
    return dataclasses.replace(found, unlike=str(first["unlike"]))


def _task(*, text_windows: int, skip: int, threads: int, reference: Path | None) -> dict[str, Any]:
    return {
        "reference": None if reference is None else _absolute(reference),
        "skip": skip,
        "windows": text_windows,
        "window": WINDOW,
        "threads": threads or this_machine().physical_cores,
    }


def _absolute(path: Path) -> str:
    return str(path.absolute())


def _must_have_llama() -> None:
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingDependencyError(
            "perplexity is measured with the library 'xllamacpp', which is not installed",
            hint="Install it with: pip install xllamacpp",
            library="xllamacpp",
        )


class Compared(NamedTuple):
    """One window beside the reference's: the divergence at each place, and how often the same token is likeliest."""

    divergences: list[float]
    same: int


def summarised(
    log_probabilities: list[float], compared: Sequence[Compared] = (), *, windows: int, bos: bool, version: str
) -> Perplexity:
    """The figures from the log-probabilities of the scored tokens, and what came of comparing the windows.

    Raises:
        EngineError: they are not numbers: the weights or the arithmetic are broken.
    """
    loss, error = _mean([-p for p in log_probabilities])
    divergences = sorted(value for window in compared for value in window.divergences)
    kl = math.fsum(divergences) / len(divergences) if compared else None
    if not math.isfinite(loss) or not math.isfinite(kl or 0.0):
        raise EngineError(
            "the model gives no probabilities for the text (not a number, or zero)",
            hint="The weights are damaged or of a kind this llama.cpp computes wrongly; pull them again.",
        )
    value = math.exp(loss)
    return Perplexity(
        value=value,
        stderr=value * error,
        tokens=len(log_probabilities),
        windows=windows,
        bos=bos,
        version=version,
        kl=kl,
        kl_stderr=_by_window([math.fsum(window.divergences) / len(window.divergences) for window in compared]),
        kl_p99=divergences[math.ceil(0.99 * len(divergences)) - 1] if compared else None,
        top1=sum(window.same for window in compared) / len(divergences) if compared else None,
        top1_stderr=_by_window([window.same / len(window.divergences) for window in compared]),
        kl_of_windows=tuple(math.fsum(window.divergences) / len(window.divergences) for window in compared),
    )


def _by_window(means: list[float]) -> float | None:
    """The standard error of a mean of windows of one length; None where a single one says nothing of it."""
    return _mean(means)[1] if len(means) > 1 else None


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    mean = math.fsum(values) / len(values)
    if not math.isfinite(mean):
        return mean, mean
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    return mean, math.sqrt(variance / (len(values) - 1))


def _answers(
    task: dict[str, Any], text: str, kept: IO[bytes] | None, *, asks: int | None = None
) -> Generator[dict[str, Any], None, None]:
    """What the scoring process says, line by line; it is ended when the iterator is."""
    with tempfile.TemporaryFile() as given:
        given.write(text.encode())
        given.seek(0)
        more = {} if kept is None else {"kept": kept.fileno()}
        windows = task["windows"] if asks is None else _MANY
        yield from child_answers(
            "pressroom.engines._score",
            {**task, "text": given.fileno(), **more},
            what="the perplexity cannot be measured",
            timeout_s=_WINDOW_TIMEOUT_S * (windows + 1),
            pass_fds=[given.fileno(), *more.values(), *([] if asks is None else [asks])],
        )
