"""A file of untrained weights: another size, perhaps another architecture, with the tokenizer of one that is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressroom.compress.models._architectures import ARCHITECTURES, EMBEDDING, FINAL_NORM, HEAD
from pressroom.compress.models._shape import Shape, check
from pressroom.compress.numbers import number_format
from pressroom.compress.weights import New, Weights, rebuild

# As GPT-2 and Llama begin: what adds to the stream is smaller the more of them there are.
_SPREAD = 0.02
_DENSE = tuple(name for name, one in ARCHITECTURES.items() if one.dense)
_BIASED = ("qwen2",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Of a model; 0 and '' stand for what the other one has."""

    architecture: str = ""
    layers: int = 0
    hidden: int = 0
    ffn: int = 0
    heads: int = 0
    kv_heads: int = 0

    def problems(self, source: Weights, shape: Shape) -> list[str]:
        """Why no such model can be made with the tokenizer of this file."""
        found = self.whole(source, shape)
        wrong = []
        if found.architecture not in _DENSE:
            wrong.append(f"architecture = {found.architecture!r} is none of {', '.join(_DENSE)}")
        if found.hidden % (2 * found.heads):
            wrong.append(
                f"hidden = {found.hidden} cannot be cut into {found.heads} heads of an even number of columns each"
            )
        if found.heads % found.kv_heads:
            wrong.append(f"heads = {found.heads} is no multiple of kv_heads = {found.kv_heads}")
        return wrong

    def file(self, source: Weights) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
        """The tensors' shapes by their names, and the metadata that differ from the source's."""
        shape = check(source)
        whole = self.whole(source, shape)
        shapes = {name: each for name, (each, _) in _tensors(whole, shape).items()}
        return shapes, _metadata(source, whole, shape)

    def whole(self, source: Weights, shape: Shape) -> Sizes:
        """With the other one's sizes where none are given. Heads keep their width."""
        hidden = self.hidden or shape.hidden
        heads = self.heads or (max(1, hidden // shape.head) if self.hidden else shape.heads[0])
        shared = shape.heads[0] // shape.kv_heads[0]
        first = source.tensors.get("blk.0.ffn_up.weight")
        return Sizes(
            architecture=self.architecture or source.architecture,
            layers=self.layers or shape.layers,
            hidden=hidden,
            ffn=self.ffn or (first.rows if first is not None else shape.expert_width),
            heads=heads,
            kv_heads=self.kv_heads or (heads // shared if heads % shared == 0 else heads),
        )


def scratch(path: Path, source: Weights, sizes: Sizes, *, seed: int) -> Sizes:
    """Write a model of these sizes with random float32 weights and the source's vocabulary, tied as the source's is.

    The metadata are the source's, but for what the sizes change. Returns the sizes without gaps.

    Raises:
        RecipeError, StoreFullError, StoreError: see `check` and `rebuild`. `Sizes.problems` must be empty.
    """
    shape = check(source)
    whole = sizes.whole(source, shape)
    tensors = {
        name: New(number_format("f32"), each, _drawn(each, spread, [seed, number]))
        for number, (name, (each, spread)) in enumerate(_tensors(whole, shape).items())
    }
    rebuild(path, source, tensors, metadata=_metadata(source, whole, shape))
    return whole


def _tensors(whole: Sizes, shape: Shape) -> dict[str, tuple[tuple[int, ...], float | None]]:
    """Shapes, and the spread of the weights: None for a norm, 0 for a bias."""
    hidden, ffn = whole.hidden, whole.ffn
    head = hidden // whole.heads
    kv = whole.kv_heads * head
    last = _SPREAD / math.sqrt(2 * whole.layers)
    found: dict[str, tuple[tuple[int, ...], float | None]] = {EMBEDDING: ((shape.vocabulary, hidden), _SPREAD)}
    architecture = ARCHITECTURES[whole.architecture]
    for number in range(whole.layers):
        layer: dict[str, tuple[tuple[int, ...], float | None]] = {
            "attn_norm.weight": ((hidden,), None),
            "attn_q.weight": ((hidden, hidden), _SPREAD),
            "attn_k.weight": ((kv, hidden), _SPREAD),
            "attn_v.weight": ((kv, hidden), _SPREAD),
            "attn_output.weight": ((hidden, hidden), last),
            "ffn_norm.weight": ((hidden,), None),
            "ffn_gate.weight": ((ffn, hidden), _SPREAD),
            "ffn_up.weight": ((ffn, hidden), _SPREAD),
            "ffn_down.weight": ((hidden, ffn), last),
        }
        if architecture.normed:
            layer |= {f"attn_{name}_norm.weight": ((head,), None) for name in ("q", "k")}
        if whole.architecture in _BIASED:
            layer |= {f"attn_{name}.bias": ((rows,), 0.0) for name, rows in (("q", hidden), ("k", kv), ("v", kv))}
        found |= {f"blk.{number}.{name}": each for name, each in layer.items()}
    found[FINAL_NORM] = ((hidden,), None)
    if not shape.tied:
        found[HEAD] = ((shape.vocabulary, hidden), _SPREAD)
    return found


def _drawn(shape: tuple[int, ...], spread: float | None, seed: list[int]) -> Callable[[], Iterator[NDArray[np.uint8]]]:
    def made() -> Iterator[NDArray[np.uint8]]:
        if spread is None:
            values = np.ones(shape, np.float32)
        elif spread == 0:
            values = np.zeros(shape, np.float32)
        else:
            values = np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(spread)
        yield np.ascontiguousarray(values).view(np.uint8).reshape(-1)

    return made


def _metadata(source: Weights, whole: Sizes, shape: Shape) -> dict[str, Any]:
    old, new = source.architecture, whole.architecture
    head = whole.hidden // whole.heads
    found: dict[str, Any] = {}
    if new != old:
        found |= {key: None for key in source.keys if key.startswith(f"{old}.")}
        found["general.architecture"] = new
    # What is said of experts, of single layers and of stretched positions is not true of the new one.
    gone = ("expert_count", "expert_used_count", "expert_feed_forward_length", "rope.scaling.type")
    found |= {f"{old}.{key}": None for key in gone if f"{old}.{key}" in source.keys}
    found |= {
        f"{new}.block_count": whole.layers,
        f"{new}.context_length": shape.context,
        f"{new}.embedding_length": whole.hidden,
        f"{new}.feed_forward_length": whole.ffn,
        f"{new}.attention.head_count": whole.heads,
        f"{new}.attention.head_count_kv": whole.kv_heads,
        f"{new}.attention.key_length": head,
        f"{new}.attention.value_length": head,
        f"{new}.attention.layer_norm_rms_epsilon": float(shape.eps),
        f"{new}.rope.dimension_count": head,
        f"{new}.rope.freq_base": float(shape.theta),
        f"{new}.vocab_size": shape.vocabulary,
    }
    return found
