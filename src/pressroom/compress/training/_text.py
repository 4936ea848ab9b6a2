"""Text as tokens, as llama.cpp makes them, and tokens as windows to train and to measure on."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pressroom.kernel import EngineError, MissingDependencyError, RecipeError

Tokens = NDArray[np.int32]

# No tokenizer in use packs this many characters into a token on average, so the rest of a long text need not be read.
_MOST_CHARACTERS_A_TOKEN = 64
_LAST_LINES = 15
_LEAST_WINDOW = 8
# Windows that are never trained on: a tenth, but no more than say what the loss is to a few percent.
_MOST_HELD = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """`bos` is the token that every text begins with (None: the model wants none), `ends` those that end an answer,
    `controls` those that are no text."""

    bos: int | None
    ends: tuple[int, ...]
    controls: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Rows of as many tokens each, int64: `train` in the order of the text, and `held`, its end, to measure on."""

    train: NDArray[np.int64]
    held: NDArray[np.int64]

    @property
    def size(self) -> int:
        """The tokens of one."""
        return int(self.train.shape[1])

    def batch(self, step: int, count: int, seed: int) -> NDArray[np.int64]:
        """The windows of a step, counted from 0: each once in an epoch, every epoch in another order."""
        total = len(self.train)
        places = np.arange(step * count, (step + 1) * count)
        orders: dict[int, NDArray[np.int64]] = {}
        rows = []
        for place in places.tolist():
            epoch, at = divmod(place, total)
            if epoch not in orders:
                orders[epoch] = np.random.default_rng([seed, epoch]).permutation(total)
            rows.append(int(orders[epoch][at]))
        return self.train[rows]


def tokenised(model: Path, text: str, *, most: int) -> tuple[Vocabulary, Tokens]:
    """The text as the tokens of a GGUF model, up to about `most` of them; markers in it are plain text.

    llama.cpp does it, in a process of its own.

    Raises:
        RecipeError: the text is empty, or llama.cpp does not load the model.
        EngineError: the process died.
        MissingDependencyError: llama.cpp is not installed.
    """
    if not text.strip():
        raise RecipeError("the text to train on is empty", hint="Name a text of the kind that the model is for.")
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingDependencyError(
            "text is made into tokens by the library 'xllamacpp', which is not installed",
            hint="Install it with: pip install xllamacpp",
            library="xllamacpp",
        )
    try:
        data = text[: most * _MOST_CHARACTERS_A_TOKEN].encode()
    except UnicodeEncodeError as error:
        raise RecipeError(f"the text to train on is not Unicode text: {error.reason}") from error
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as found, tempfile.TemporaryFile() as log:
        given.write(data)
        given.seek(0)
        done = subprocess.run(
            [
                *(sys.executable, "-P", "-m", "pressroom.compress.training._text_child"),
                *(str(model.absolute()), str(given.fileno()), str(found.fileno())),
            ],
            check=False,
            pass_fds=(given.fileno(), found.fileno()),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        if done.returncode != 0:
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
            raise (RecipeError if done.returncode == 1 else EngineError)(
                f"the tokenizer of {model.name} cannot be used: the process ended with status {done.returncode}",
                hint="Its last lines say why." if done.returncode != -9 else "It may have run out of memory.",
                lines=lines,
            )
        found.seek(0)
        head = json.loads(found.readline())
        tokens = np.frombuffer(found.read(), np.int32)
    return Vocabulary(bos=head["bos"], ends=tuple(head["ends"]), controls=tuple(head["controls"])), tokens


def cut(tokens: Tokens, vocabulary: Vocabulary, *, window: int) -> Windows:
    """Windows that do not overlap, each with the token that begins a text, where there is one. A tenth of them at the
    end of the text, one to eight, is held back.

    Raises:
        RecipeError: there are not two.
    """
    body = window if vocabulary.bos is None else window - 1
    count = len(tokens) // body
    if window < _LEAST_WINDOW or count < 2:
        raise RecipeError(
            f"the text to train on is too short: {len(tokens)} tokens, and two windows take {2 * body}",
            hint="Name a longer text, or ask for a smaller window.",
            tokens=len(tokens),
            window=window,
        )
    rows = tokens[: count * body].reshape(count, body).astype(np.int64)
    if vocabulary.bos is not None:
        rows = np.concatenate([np.full((count, 1), vocabulary.bos, np.int64), rows], axis=1)
    held = min(_MOST_HELD, max(1, count // 10))
    return Windows(rows[:-held], rows[-held:])


def joined(rows: Sequence[NDArray[np.int64]], *, fill: int) -> NDArray[np.int64]:
    """Rows of different lengths as one array, filled up at their ends."""
    found = np.full((len(rows), max(map(len, rows))), fill, np.int64)
    for number, row in enumerate(rows):
        found[number, : len(row)] = row
    return found
