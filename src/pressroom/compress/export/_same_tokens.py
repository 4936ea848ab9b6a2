"""Whether a tokenizer that was carried over gives the tokens that it gave before, on texts of many kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pressroom.compress.export._gguf_file import Key
from pressroom.compress.export._llama_tokens import llama_tokens
from pressroom.compress.export._probes import COMBINING, PROBES
from pressroom.compress.export._tokenizer_files import CONTROL, USER
from pressroom.kernel import RecipeError

# Of the tokens that stand for themselves so many are tried, each in a sentence.
_MARKERS = 12


@dataclass(frozen=True, slots=True)
class Agreement:
    """`asked`: llama.cpp was there to be asked. `unlike`: texts with combining marks on which the two differ."""

    asked: bool
    unlike: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What the user should know; '' where there is nothing."""
        if not self.asked:
            return "the tokenizer was not compared with llama.cpp's, which is not installed"
        if self.unlike:
            return f"llama.cpp cuts letters with combining marks otherwise than transformers, as in {self.unlike[0]!r}"
        return ""


def check_same(keys: Mapping[str, Any], tokenizer: Any) -> Agreement:
    """Whether llama.cpp, with the keys `tokenizer.*` of a GGUF file, and a tokenizer of the library `tokenizers` agree.

    Raises:
        RecipeError: they do not agree; it shows the first text. EngineError: llama.cpp does not take the keys.
    """
    own: dict[str, Key] = {key: value for key, value in keys.items() if key.startswith("tokenizer.")}
    texts = [*PROBES, *_marked(own), *COMBINING]
    found = llama_tokens(own, texts)
    if found is None:
        return Agreement(False)
    unlike = []
    for text, theirs in zip(texts, found, strict=True):
        ours = tokenizer.encode(text).ids
        if ours == theirs:
            continue
        if text in COMBINING:
            unlike.append(text)
            continue
        at = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0)
        raise RecipeError(
            f"the tokenizer does not give the same tokens in llama.cpp and in transformers: {text!r} is "
            f"…{theirs[at : at + 5]} and …{ours[at : at + 5]} from token {at} on",
            hint="The model cannot be carried over faithfully: take its publisher's files for that engine.",
            text=text,
            llamacpp=theirs,
            transformers=ours,
        )
    return Agreement(True, tuple(unlike))


def _marked(keys: Mapping[str, Any]) -> list[str]:
    kinds = keys.get("tokenizer.ggml.token_type") or []
    marks = [
        token for token, kind in zip(keys["tokenizer.ggml.tokens"], kinds, strict=False) if kind in (CONTROL, USER)
    ]
    step = max(1, len(marks) // _MARKERS)
    return [f"{mark}one{mark} two" for mark in marks[::step][:_MARKERS]]
