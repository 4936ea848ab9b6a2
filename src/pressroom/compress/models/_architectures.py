"""Which architectures of GGUF are known, and how their tensors are called in transformers.

A new one that is built like these is a line in `ARCHITECTURES`; a tensor that no table names is an error, so that none
is ever left out silently.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pressroom.compress.weights import Weights
from pressroom.kernel import RecipeError

EMBEDDING, HEAD, FINAL_NORM = "token_embd.weight", "output.weight", "output_norm.weight"
#: By what the frequencies of rotary positions are divided (Llama 3.1 and later). No weight: it is not trained.
FREQUENCIES = "rope_freqs.weight"

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor is in the model: the name of the parameter, in which of its two halves along the outputs (None:
    all of it), and whether its rows lie in another order there (see `_turning`)."""

    parameter: str
    turned: bool = False
    half: int | None = None


@dataclass(frozen=True, slots=True)
class Architecture:
    """`dense` and `experts` are transformers' names of the model; '' where there is none of that kind. `turned`: rotary
    positions turn neighbouring rows of q and k in the file, and rows half a head apart in transformers. `normed`: q and
    k have norms."""

    dense: str
    experts: str = ""
    turned: bool = False
    normed: bool = False


ARCHITECTURES = {
    "llama": Architecture("llama", "mixtral", turned=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3", normed=True),
    "qwen3moe": Architecture("", "qwen3_moe", normed=True),
}

_ENDS = {EMBEDDING: "model.embed_tokens.weight", FINAL_NORM: "model.norm.weight", HEAD: "lm_head.weight"}
_LAYER = {
    "attn_norm.weight": Place("input_layernorm.weight"),
    "ffn_norm.weight": Place("post_attention_layernorm.weight"),
    "attn_q_norm.weight": Place("self_attn.q_norm.weight"),
    "attn_k_norm.weight": Place("self_attn.k_norm.weight"),
    **{
        f"attn_{ours}.{kind}": Place(f"self_attn.{theirs}_proj.{kind}", turned=ours in ("q", "k"))
        for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("output", "o"))
        for kind in ("weight", "bias")
    },
    **{f"ffn_{name}.weight": Place(f"mlp.{name}_proj.weight") for name in ("gate", "up", "down")},
    "ffn_gate_inp.weight": Place("mlp.gate.weight"),
    "ffn_gate_exps.weight": Place("mlp.experts.gate_up_proj", half=0),
    "ffn_up_exps.weight": Place("mlp.experts.gate_up_proj", half=1),
    "ffn_down_exps.weight": Place("mlp.experts.down_proj"),
}
NORMED_HEADS = ("attn_q_norm.weight", "attn_k_norm.weight")


def architecture_of(source: Weights) -> Architecture:
    """Raises RecipeError where it is none of those known."""
    found = ARCHITECTURES.get(source.architecture)
    if found is None:
        raise RecipeError(
            f"{source.called} is of the architecture {source.architecture or '(not named)'}, which cannot be trained",
            hint=f"Known are {', '.join(ARCHITECTURES)}.",
            architecture=source.architecture,
            known=list(ARCHITECTURES),
        )
    return found


def places(source: Weights) -> dict[str, Place]:
    """Where every tensor of the file goes, but for the table of frequencies. Raises RecipeError where one has none."""
    architecture = architecture_of(source)
    found: dict[str, Place] = {}
    unknown = []
    for name in source.tensors:
        if name == FREQUENCIES:
            continue
        place = _place(name, architecture)
        if place is None:
            unknown.append(name)
        else:
            found[name] = place
    if unknown:
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise RecipeError(
            f"{source.called} ({source.architecture}) has tensors that its model in transformers has no place for: "
            f"{shown}",
            hint="It is a variant of that architecture that cannot be trained here.",
            tensors=unknown,
        )
    return found


def _place(name: str, architecture: Architecture) -> Place | None:
    if name in _ENDS:
        return Place(_ENDS[name])
    block = _BLOCK.fullmatch(name)
    place = _LAYER.get(block[2]) if block else None
    if block is None or place is None:
        return None
    if block[2] in NORMED_HEADS and not architecture.normed:
        return None
    return Place(f"model.layers.{block[1]}.{place.parameter}", place.turned and architecture.turned, place.half)
