"""Answers held to a JSON schema or a pattern, token by token, with the library `llguidance`."""

from __future__ import annotations

import importlib
import importlib.util
import json
from typing import Any

import torch

from pressroom.engines._transformers.refusal import Refusal, wrong

# A bound on what one grammar may cost; llguidance's own are a hundred times what any real schema needs.
_MOST_CHARACTERS = 256 << 10


def installed() -> bool:
    """Whether the library is there."""
    return importlib.util.find_spec("llguidance") is not None


class Grammars:
    """Makes what holds an answer to a grammar, for one tokenizer. Thread-safe."""

    def __init__(self, tokenizer: Any, size: int, ends: tuple[int, ...]) -> None:
        """Raises ValueError for a tokenizer that the library cannot read."""
        self._library: Any = importlib.import_module("llguidance")
        reader: Any = importlib.import_module("llguidance.hf")
        self._tokenizer = reader.from_tokenizer(tokenizer, n_vocab=size, eos_token=list(ends) or None)
        self.size = size

    def json(self, schema: dict[str, Any], *, param: str) -> str:
        """The grammar of a JSON schema; raises Refusal for one that cannot be kept."""
        if len(json.dumps(schema)) > _MOST_CHARACTERS:
            raise wrong(param, f"The schema is longer than {_MOST_CHARACTERS} characters.")
        # Free whitespace invites a small model to write nothing else.
        layout = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        try:
            return self._checked(self._library.LLMatcher.grammar_from_json_schema(schema, overrides=layout), param)
        except ValueError as error:
            raise wrong(param, f"Invalid schema: {error}") from error

    def pattern(self, pattern: str, *, param: str) -> str:
        """The grammar of a regular expression."""
        return self._checked(self._library.LLMatcher.grammar_from_regex(pattern), param)

    def choice(self, choices: list[str], *, param: str) -> str:
        """One of these texts."""
        return self.lark("start: " + " | ".join(json.dumps(choice) for choice in choices), param=param)

    def lark(self, text: str, *, param: str) -> str:
        """A grammar in Lark's notation, with llguidance's extensions."""
        return self._checked(self._library.LLMatcher.grammar_from_lark(text), param)

    def _checked(self, grammar: str, param: str) -> str:
        if len(grammar) > 4 * _MOST_CHARACTERS:
            raise wrong(param, f"The grammar is longer than {4 * _MOST_CHARACTERS} characters.")
        problem = self._library.LLMatcher.validate_grammar(grammar, self._tokenizer)
        if problem and not problem.startswith("WARNING"):
            raise Refusal(f"Invalid schema: {problem[:500]}", param=param, kind="invalid_value")
        return grammar

    def begin(self, grammar: str) -> Held:
        """For one answer."""
        return Held(self._library.LLMatcher(self._tokenizer, grammar, log_level=0), self.size)


class Held:
    """One answer that is held to its grammar."""

    def __init__(self, matcher: Any, size: int) -> None:
        self._matcher = matcher
        self._words = torch.zeros((size + 31) // 32, dtype=torch.int32)
        self._size = size

    @property
    def problem(self) -> str:
        """What went wrong inside the grammar, '' where nothing did."""
        return str(self._matcher.get_error())[:500] if self._matcher.is_error() else ""

    @property
    def complete(self) -> bool:
        """Whether nothing can follow any more."""
        return bool(self._matcher.is_stopped())

    def mask(self, logits: torch.Tensor) -> None:
        """Make what may not follow impossible, in place."""
        self._matcher.unsafe_compute_mask_ptr(self._words.data_ptr(), self._words.numel() * 4)
        bits = (self._words[:, None] >> torch.arange(32, dtype=torch.int32)) & 1
        allowed = bits.reshape(-1)[: self._size].bool().to(logits.device)
        logits.masked_fill_(~allowed, float("-inf"))

    def said(self, token: int) -> None:
        """The token has become part of the answer."""
        self._matcher.consume_token(token)
