"""llama.cpp's own types, with an importance matrix: what `compress.py` puts Pressroom's files beside.

The only `llama-quantize` in a wheel is that of a fork (`ik-llama-cpp-python`), which falls back to types of its own
that llama.cpp cannot load, and mixes types a little otherwise. So every tensor is told its type, by the rules that
llama.cpp's `llama-quantize` has for a llama, fallbacks included; the fork only rounds. The file is looked at
afterwards: each tensor has the type that was meant.

The rules are llama.cpp's of late 2026 but for one, where an older one loses less in as many bytes and is taken: what
cannot be Q2_K or Q3_K becomes IQ4_NL, and not Q4_0. IQ4_NL+ is IQ4_NL with the values of attention in the type that
llama.cpp gives them where four heads share them, as the fork does for this model too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from _gateway_peers import NotMeasured, Peer, environment

from pressroom.compress.weights import Role, Tensor, Weights, check, open_weights
from pressroom.kernel import RecipeError

#: The types of each benchmark model: SmolLM2's rows are no multiples of 256, the second model's are.
ANCHORS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "IQ4_NL+", "IQ4_NL", "Q4_0")
LOW_BIT = ("Q4_K_M", "Q3_K_M", "IQ3_S", "IQ3_XXS", "Q2_K", "IQ2_S", "IQ2_XXS")
PACKAGE = "ik-llama-cpp-python==0.1.5"
_QUANTISER = Peer(name="llama-quantize", environment="llama-quantize", packages=(PACKAGE,), health="", ways=())
_FALLBACK = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
_LARGE = 256
_SMALL = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")  # in blocks of 32


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a tensor is: its layer, of how many, and how many heads share one of keys and values."""

    part: str
    layer: int
    layers: int
    shared: int

    @property
    def more_bits(self) -> bool:
        eighth = self.layers // 8
        return self.layer < eighth or self.layer >= 7 * self.layers // 8 or (self.layer - eighth) % 3 == 2


def _rule(plain: str, **parts: Callable[[_Place], str]) -> Callable[[_Place], str]:
    return lambda place: parts[place.part](place) if place.part in parts else plain


def _always(type: str) -> Callable[[_Place], str]:
    return lambda place: type


def _value_2bit(place: _Place) -> str:
    return "q4_k" if place.shared >= 4 else "q2_k"


# What a tensor of a layer becomes: llama.cpp's `llama_tensor_get_type_impl`, for a llama without experts and with an
# importance matrix.
_RULES: dict[str, Callable[[_Place], str]] = {
    "Q8_0": _rule("q8_0"),
    "Q6_K": _rule("q6_k"),
    "Q5_K_M": _rule(
        "q5_k",
        attn_v=lambda at: "q6_k" if at.more_bits else "q5_k",
        ffn_down=lambda at: "q6_k" if at.more_bits else "q5_k",
    ),
    "Q4_K_M": _rule(
        "q4_k",
        attn_v=lambda at: "q6_k" if at.more_bits else "q4_k",
        ffn_down=lambda at: "q6_k" if at.more_bits else "q4_k",
    ),
    "IQ4_NL": _rule("iq4_nl", attn_v=lambda at: "q5_k" if at.shared >= 4 else "iq4_nl"),
    "IQ4_NL+": _rule("iq4_nl", attn_v=_always("q5_k")),
    "Q4_0": _rule("q4_0", ffn_down=lambda at: "q4_1" if at.layer < at.layers // 8 else "q4_0"),
    "Q3_K_M": _rule(
        "q3_k",
        attn_v=lambda at: "q5_k" if at.layer < 2 else "q4_k",
        ffn_down=lambda at: "q5_k" if at.layer < at.layers // 16 else "q4_k",
        attn_output=_always("q4_k"),
    ),
    "IQ3_S": _rule("iq3_s", attn_v=lambda at: "q4_k" if at.shared >= 4 else "iq3_s"),
    "IQ3_XXS": _rule(
        "iq3_xxs",
        attn_v=lambda at: "q4_k" if at.shared >= 4 else "iq3_xxs",
        attn_q=_always("iq2_s"),
        attn_k=_always("iq2_s"),
        attn_output=_always("iq3_s"),
    ),
    "Q2_K": _rule(
        "q2_k",
        attn_v=lambda at: "q4_k" if at.shared >= 4 else "q3_k",
        ffn_down=_always("q3_k"),
        attn_output=_always("q3_k"),
    ),
    "IQ2_S": _rule(
        "iq2_xs",
        attn_v=lambda at: "q4_k" if at.shared >= 4 else "iq3_s",
        ffn_down=lambda at: "iq3_s" if at.layer < at.layers // 8 else "iq2_xs",
        attn_output=_always("iq3_s"),
    ),
    "IQ2_XXS": _rule(
        "iq2_xxs",
        attn_v=_value_2bit,
        ffn_down=lambda at: "q2_k" if at.layer < at.layers // 8 else "iq2_xxs",
    ),
}


def types(anchor: str, tensors: list[Tensor], *, layers: int, shared: int) -> dict[str, str]:
    """The type of each matrix, by llama.cpp's rules."""
    found = {}
    for tensor in tensors:
        if tensor.role is Role.LINEAR:
            assert tensor.layer is not None
            type = _RULES[anchor](_Place(part=tensor.part, layer=tensor.layer, layers=layers, shared=shared))
        elif tensor.role in (Role.EMBEDDING, Role.HEAD):  # tied, so that it is the head
            type = "q8_0" if anchor == "Q8_0" else "q5_k" if anchor.startswith("IQ2") or anchor == "IQ3_XXS" else "q6_k"
        else:
            continue
        if tensor.columns % _LARGE and type not in _SMALL:
            type = _FALLBACK.get(type, "iq4_nl")
        found[tensor.name] = type
    return found


def types_of(anchor: str, weights: Weights) -> dict[str, str]:
    """The type of each matrix of a file."""
    heads = int(weights.value(f"{weights.architecture}.attention.head_count"))
    shared = heads // int(weights.value(f"{weights.architecture}.attention.head_count_kv", heads))
    layers = int(weights.value(f"{weights.architecture}.block_count"))
    return types(anchor, [*weights.tensors.values()], layers=layers, shared=shared)


def size_of(anchor: str, source: Path) -> int | None:
    """The bytes that the anchor's file would be, about; None where it has types that Pressroom does not write."""
    with open_weights(source) as weights:
        try:
            return check(weights, types_of(anchor, weights)).size
        except RecipeError:
            return None


def quantiser(environments: Path, *, make: bool) -> Path:
    """The program, in an environment of its own. Raises NotMeasured."""
    binaries = environment(_QUANTISER, environments, make=make)
    found = next(iter(binaries.parent.glob("lib*/python*/site-packages/ik_llama_cpp/bin/llama-quantize")), None)
    if found is None:
        raise NotMeasured(f"{PACKAGE} has no llama-quantize for this machine")
    if not os.access(found, os.X_OK):
        found.chmod(0o755)
    return found


def quantised(program: Path, anchor: str, source: Path, imatrix: Path, target: Path, *, threads: int) -> None:
    """Write the file of that type, where it is not there. Raises NotMeasured: it could not be made as meant."""
    if target.exists():
        return
    with open_weights(source) as weights:
        wanted = types_of(anchor, weights)
    by_type: dict[str, list[str]] = {}
    for name, type in wanted.items():
        by_type.setdefault(type, []).append(re.escape(name))
    rules = ",".join(f"^({'|'.join(names)})$={_spelled(type)}" for type, names in by_type.items())
    part = target.with_suffix(".part")
    base = anchor.rstrip("+")
    command = [program, "--imatrix", imatrix, "--custom-q", rules, source, part, base, str(threads)]
    print(f"llama-quantize {anchor} ...", file=sys.stderr, flush=True)
    made = subprocess.run([*map(str, command)], capture_output=True, text=True, errors="replace", check=False)
    if made.returncode or not part.exists():
        raise NotMeasured(f"llama-quantize ended with {made.returncode}: {made.stderr.strip()[-300:]}")
    different = unlike(part, wanted)
    if different:
        part.unlink()
        raise NotMeasured(f"llama-quantize made other types than it was told: {'; '.join(different[:3])}")
    part.replace(target)


def _spelled(type: str) -> str:
    """As ggml names it: q4_K, iq4_nl."""
    return type.replace("_k", "_K")


def unlike(path: Path, wanted: dict[str, str]) -> list[str]:
    """The tensors of a file that have another type than they should."""
    from pressroom.store import inspect

    found = {tensor.name: tensor.dtype.lower() for tensor in inspect(path).tensors}
    return [f"{name} is {found.get(name)}, not {type}" for name, type in wanted.items() if found.get(name) != type]
