"""Calibrating: once for a model, a text and a size, in a child process, kept as a file."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from pressroom.compress.calibrate._file import SCHEMA, load, making
from pressroom.compress.calibrate.base import Calibration
from pressroom.kernel import (
    EngineError,
    MissingDependencyError,
    NotFoundError,
    PressroomError,
    RecipeError,
    WeightsError,
    this_machine,
)
from pressroom.store import inspect

_log = logging.getLogger(__name__)

_LEAST_WINDOW = 8
_MOST_WINDOW = 1 << 15
_LAST_LINES = 15
# How BLAS libraries are told how many threads to take; some read it only when they are loaded.
_BLAS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_RAISED: dict[str, type[PressroomError]] = {"RecipeError": RecipeError, "WeightsError": WeightsError}


def calibrate(
    model: Path,
    text: str,
    *,
    tokens: int,
    folder: Path,
    window: int = 512,
    hessians: bool = True,
    threads: int = 0,
    allow_unseen: bool = False,
    model_digest: str = "",
    on_progress: Callable[[int, int], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> Calibration:
    """What goes into every linear layer of a GGUF model on the first `tokens` tokens of the text (whole windows; fewer
    where it is shorter).

    The result is kept in `folder` under what it was made from, and read from there the next time; `model_digest` names
    the model's bytes where the caller knows them (else they are hashed). `threads` 0 takes the physical cores;
    `on_progress` gets (windows done, windows in all); `on_warning` gets a sentence where the text may be in a language
    that the model does not know. The same input and threads give the same bytes.

    Raises:
        RecipeError: the text is empty or shorter than a window, the model is of an architecture that llama.cpp does not
            load, an input is not finite, or matrices saw no input and `allow_unseen` is off.
        EngineError: the process died.
        WeightsError, NotFoundError, StoreError: the model is not GGUF, damaged, not there; the disk is full.
        MissingDependencyError: llama.cpp is not installed.
    """
    data = checked(text, tokens=tokens, window=window)
    if inspect(model).format != "gguf":
        raise RecipeError(f"{model.name} is not GGUF", hint="Only GGUF models are calibrated so far.")
    task: dict[str, Any] = {
        "model_digest": model_digest or _file_digest(model),
        "text_digest": "sha256-" + hashlib.sha256(data).hexdigest(),
        "tokens": tokens // window * window,
        "window": window,
    }
    key = hashlib.sha256(json.dumps([SCHEMA, *task.values()]).encode()).hexdigest()
    found = _kept(folder, key, hessians=hessians, allow_unseen=allow_unseen)
    if found is None:
        must_have_llama()
        path = folder / _name(key, hessians=hessians)
        task |= {"model": str(model.absolute()), "hessians": hessians, "allow_unseen": allow_unseen}
        task["threads"] = threads or this_machine().physical_cores
        with making(path) as fd:
            total = 0
            for answer in answers({**task, "file": fd}, data):
                total = int(answer.get("windows", total))
                if on_progress is not None and "done" in answer:
                    on_progress(int(answer["done"]), total)
        found = load(path)
    if on_warning is not None:
        for warning in found.warnings:
            on_warning(warning)
    return found


def must_have_llama() -> None:
    """Raises MissingDependencyError where llama.cpp is not installed."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingDependencyError(
            "calibrating needs the library 'xllamacpp', which is not installed",
            hint="Install it with: pip install xllamacpp",
            library="xllamacpp",
        )


def checked(text: str, *, tokens: int, window: int) -> bytes:
    if not _LEAST_WINDOW <= window <= _MOST_WINDOW:
        raise RecipeError(
            f"a window of {window} tokens was asked for", hint=f"Allowed: {_LEAST_WINDOW} to {_MOST_WINDOW}."
        )
    if tokens < window:
        raise RecipeError(
            f"calibration on {tokens} tokens was asked for, and one window takes {window}",
            hint=f"Ask for {window} tokens or more; 8192 are usual.",
        )
    if not text.strip():
        raise RecipeError("the calibration text is empty", hint="Name a text of the kind that the model is for.")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise RecipeError(f"the calibration text is not Unicode text: {error.reason}") from error


def _name(key: str, *, hessians: bool) -> str:
    return f"{key}{'' if hessians else '-moments'}.safetensors"


def _kept(folder: Path, key: str, *, hessians: bool, allow_unseen: bool) -> Calibration | None:
    """What was kept, and is good for this; with Hessians it is good for both."""
    for full in (True,) if hessians else (True, False):
        path = folder / _name(key, hessians=full)
        try:
            found = load(path)
        except NotFoundError:
            continue
        except PressroomError as error:
            _log.warning("%s is made again: %s", path, error.message)
            continue
        if allow_unseen or not found.unseen:
            return found
    return None


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256-" + hashlib.file_digest(file, "sha256").hexdigest()


def answers(task: dict[str, Any], text: bytes, *, child: str = "_child") -> Iterator[dict[str, Any]]:
    """Run a child, a module of this package; what it says, line by line. It is ended when the iterator is."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as log:
        given.write(text)
        given.seek(0)
        spec = json.dumps({**task, "text": given.fileno()})
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"pressroom.compress.calibrate.{child}", spec],
            pass_fds=(given.fileno(), *([int(task["file"])] if "file" in task else [])),
            stdin=subprocess.PIPE,  # its end is the end of the other process, however this one ends
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for this process, which ends the other
            env={**os.environ, **dict.fromkeys(_BLAS, str(task["threads"]))},
        )
        assert process.stdin is not None and process.stdout is not None
        finished = False
        try:
            for line in process.stdout:
                if not line.endswith(b"\n"):
                    break  # it died in the middle of it
                answer = json.loads(line)
                if "failed" in answer:
                    raise _failed(answer, log)
                finished = "finished" in answer
                yield answer
            if process.wait() != 0 or not finished:
                raise EngineError(
                    f"the model cannot be calibrated: the process ended with status {process.returncode}",
                    hint="Its last lines say why." if process.returncode != -9 else "It may have run out of memory.",
                    lines=_last_lines(log),
                )
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


def _failed(answer: dict[str, Any], log: IO[bytes]) -> Exception:
    if answer["failed"] == "disk":
        return OSError(answer["errno"], answer["strerror"])  # `making` says where
    kind = _RAISED.get(answer.pop("kind"), EngineError)
    del answer["failed"], answer["code"]
    message, hint = answer.pop("message"), answer.pop("hint")
    return kind(message, hint=hint, **answer, lines=_last_lines(log))


def _last_lines(log: IO[bytes]) -> list[str]:
    log.seek(0)
    return log.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
