"""How vocabularies of byte pairs cut a text before they merge: llama.cpp's name for it, and the same for `tokenizers`.

The patterns are those of llama.cpp (src/llama-vocab.cpp), which took them from the models' own tokenizers. A text is
cut by each in turn, and what matches none is a piece of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_ENDS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_LLAMA3 = _ENDS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}{_REST}"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDS}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDS}?"
    rf"|\p{{N}}{{1,3}}{_REST}"
)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)


@dataclass(frozen=True, slots=True)
class Split:
    """`whole`: a piece that is a token is taken as one, whatever the merges say."""

    patterns: tuple[str, ...]
    whole: bool = False


_SINGLE_DIGITS = Split((r"\p{N}", _GPT2))
#: By the name in `tokenizer.ggml.pre`. Of several that are alike the first is the one that is written.
SPLITS = {
    "gpt-2": Split((_GPT2,)),
    "smollm": _SINGLE_DIGITS,
    "qwen2": Split((_QWEN2,)),
    "llama-bpe": Split((_LLAMA3,), whole=True),
    "tekken": Split((_TEKKEN,), whole=True),
    "gpt-4o": Split((_GPT4O,)),
    "deepseek-v3": Split(_DEEPSEEK3),
    "dbrx": Split((_LLAMA3,)),
    "smaug-bpe": Split((_LLAMA3,)),
    "llama3": Split((_LLAMA3,), whole=True),
    "llama-v3": Split((_LLAMA3,), whole=True),
    "falcon3": Split((_LLAMA3,), whole=True),
    "pixtral": Split((_LLAMA3,), whole=True),
    "stablelm2": Split((_QWEN2,)),
    "deepseek-r1-qwen": Split((_QWEN2,)),
    "megrez": Split((_QWEN2,)),
    "llama4": Split((_GPT4O,)),
    "phi-2": Split((_GPT2,)),
    "mpt": Split((_GPT2,)),
    "olmo": Split((_GPT2,)),
    "modern-bert": Split((_GPT2,)),
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "command-r": _SINGLE_DIGITS,
    "codeshell": _SINGLE_DIGITS,
    "exaone": _SINGLE_DIGITS,
}


def pre_tokenizer(split: Split) -> Any:
    """The same for the library `tokenizers`."""
    from tokenizers import Regex, pre_tokenizers

    parts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns]
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
