"""The options of a deployment on this engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pressroom.engines import child
from pressroom.engines.options import Known, one_of, text, whole, wrong_option

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_ATTENTION = ("auto", "sdpa", "eager", "flash_attention_2")
# KV of prompts that may come again: 11,000 tokens of a model of 135 M parameters, 2,000 of one of 8 B.
_CACHE_MIB = 256

OPTIONS: Known = {
    "dtype": one_of(_DTYPES),
    "device": text("the name of a device"),
    "cache_mib": whole(0),
    "attn": one_of(_ATTENTION),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """`dtype` of weights and arithmetic, `auto` takes that of the files; `device` such as `cpu` or `cuda:0`, `auto`
    takes the GPU where there is one; `cache_mib` for the KV of prompts that may come again; `attn` is an implementation
    of attention by transformers' name."""

    dtype: str = "auto"
    device: str = "auto"
    cache_mib: int = _CACHE_MIB
    attn: str = "auto"

    @classmethod
    def read(cls, given: dict[str, Any]) -> Options:
        """Checked; ends the process with a report where one is wrong."""
        wrong = wrong_option("transformers", given, OPTIONS)
        if wrong is not None:
            child.failed(*wrong)
        return cls(**given)
