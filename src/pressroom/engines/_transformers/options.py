"""The options of a deployment on this engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pressroom.engines import child
from pressroom.kernel import did_you_mean

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_ATTENTION = ("auto", "sdpa", "eager", "flash_attention_2")
# KV of prompts that may come again: 11,000 tokens of a model of 135 M parameters, 2,000 of one of 8 B.
_CACHE_MIB = 256


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
        names = tuple(cls.__dataclass_fields__)
        for name, value in given.items():
            if name not in names:
                hint = did_you_mean(name, names, otherwise=f"Its options: {', '.join(names)}.")
                child.failed(f"transformers has no option {name!r}", hint=hint)
            if name == "cache_mib":
                if type(value) is not int or value < 0:
                    child.failed(f"the option cache_mib = {value!r} of transformers is not a whole number, at least 0")
            elif type(value) is not str:
                child.failed(f"the option {name} = {value!r} of transformers is not text")
        options = cls(**given)
        for name, allowed in (("dtype", _DTYPES), ("attn", _ATTENTION)):
            value = getattr(options, name)
            if value not in allowed:
                child.failed(
                    f"the option {name} = {value!r} of transformers is unknown",
                    hint=f"It is one of {', '.join(allowed)}.",
                )
        return options
