"""What a model is built like, from the metadata and the shapes of a file, and what of it cannot be built."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressroom.compress.models._architectures import (
    EMBEDDING,
    FINAL_NORM,
    FREQUENCIES,
    HEAD,
    NORMED_HEADS,
    Place,
    architecture_of,
    places,
)
from pressroom.compress.weights import Weights
from pressroom.kernel import MissingDependencyError, RecipeError

_LAYER_NEEDS = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm")
_FEED_FORWARD = ("ffn_gate", "ffn_up", "ffn_down")
_EXPERTS = ("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
_LIBRARIES = ("torch", "transformers")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shape:
    """A model's sizes. `heads` and `kv_heads` are each layer's own, which pruning may have made differ; `head` is the
    width of one. `frequencies` divide those of the rotary positions (None: by 1), `stretch` all of them."""

    kind: str
    hidden: int
    head: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    vocabulary: int
    context: int
    eps: float
    theta: float
    stretch: float = 1.0
    frequencies: NDArray[np.float32] | None = None
    tied: bool = False
    experts: int = 0
    experts_used: int = 0
    expert_width: int = 0
    places: dict[str, Place] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self.heads)


def check(source: Weights) -> Shape:
    """What the model of this file is built like. Reads the header, and no data but a table of frequencies.

    Raises:
        RecipeError: the architecture is not known, or the file has what its model in transformers cannot be given.
        MissingDependencyError: PyTorch or transformers is missing.
    """
    for library in _LIBRARIES:
        if importlib.util.find_spec(library) is None:
            raise MissingDependencyError(
                f"training needs the library {library!r}, which is not installed",
                hint="Install it: pip install 'pressroom[compress]'",
                missing=library,
            )
    architecture = architecture_of(source)
    found = places(source)
    layers = int(source.value(f"{source.architecture}.block_count", 0))
    experts = _has_experts(source, layers)
    kind = architecture.experts if experts else architecture.dense
    if not kind:
        raise RecipeError(
            f"{source.called} ({source.architecture}) is {'' if experts else 'not '}made of experts",
            hint="Files of that architecture are otherwise: look at where this one comes from.",
        )
    hidden = source.tensor(EMBEDDING).columns
    head = _head_size(source, hidden)
    heads, kv_heads = _heads(source, layers, head)
    return Shape(
        kind=kind,
        hidden=hidden,
        head=head,
        heads=heads,
        kv_heads=kv_heads,
        vocabulary=source.tensor(EMBEDDING).rows,
        context=int(_number(source, "context_length", 2048)),
        eps=float(_number(source, "attention.layer_norm_rms_epsilon", 1e-5)),
        theta=float(_number(source, "rope.freq_base", 10000.0)),
        stretch=_stretch(source),
        frequencies=source.rows(FREQUENCIES).reshape(-1) if FREQUENCIES in source.tensors else None,
        tied=HEAD not in source.tensors,
        experts=source.tensor("blk.0.ffn_gate_exps.weight").shape[0] if experts else 0,
        experts_used=int(_number(source, "expert_used_count", 0)) if experts else 0,
        expert_width=source.tensor("blk.0.ffn_gate_exps.weight").shape[1] if experts else 0,
        places=found,
    )


def _has_experts(source: Weights, layers: int) -> bool:
    """Raises RecipeError where layers lack tensors, or only some have experts."""
    kinds = {number: f"blk.{number}.ffn_gate_exps.weight" in source.tensors for number in range(layers)}
    if len(set(kinds.values())) > 1:
        raise RecipeError(
            f"some layers of {source.called} are experts and some are not, which no model in transformers is",
            hint="Train it before the experts are made.",
        )
    experts = any(kinds.values())
    needs = [f"{part}.weight" for part in (*_LAYER_NEEDS, *(_EXPERTS if experts else _FEED_FORWARD))]
    if architecture_of(source).normed:
        needs += NORMED_HEADS
    wanted = [EMBEDDING, FINAL_NORM, *(f"blk.{number}.{part}" for number in range(layers) for part in needs)]
    missing = [name for name in wanted if name not in source.tensors]
    if missing or not layers:
        raise RecipeError(
            f"{source.called} lacks {len(missing)} tensors of a {source.architecture}: {', '.join(missing[:5])}"
            if layers
            else f"{source.called} does not say how many layers it has",
            hint="It is a variant of that architecture that cannot be trained here.",
            tensors=missing,
        )
    if experts:
        shapes = {source.tensor(f"blk.{number}.ffn_gate_exps.weight").shape for number in range(layers)}
        if len(shapes) > 1:
            raise RecipeError(
                f"the layers of {source.called} have experts of several sizes: {sorted(shapes)}",
                hint="Such a model cannot be trained here.",
            )
    return experts


def _head_size(source: Weights, hidden: int) -> int:
    counts = _number(source, "attention.head_count", 0, whole_list=True)
    first = int(counts[0] if isinstance(counts, list) else counts)
    size = int(_number(source, "attention.key_length", 0)) or (hidden // first if first else 0)
    size = size or int(_number(source, "rope.dimension_count", 0))
    problems = []
    if not size:
        problems.append("it does not say how wide an attention head is")
    values = int(_number(source, "attention.value_length", size))
    if values != size:
        problems.append(f"its heads are {size} wide in q and k, and {values} in v")
    turned = int(_number(source, "rope.dimension_count", size))
    if turned != size:
        problems.append(f"its rotary positions turn {turned} of a head's {size} numbers")
    if problems:
        raise RecipeError(
            f"{source.called} cannot be trained: {', and '.join(problems)}",
            hint="Such heads have no model in transformers that is known here.",
        )
    return size


def _heads(source: Weights, layers: int, head: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    counts = []
    for number in range(layers):
        q, k = (source.tensor(f"blk.{number}.attn_{name}.weight").rows for name in ("q", "k"))
        if q % head or k % head or not k or q % k:
            raise RecipeError(
                f"layer {number} of {source.called} has {q} rows in q and {k} in k, which are no whole heads of {head}",
                hint="Look at where the file comes from.",
                layer=number,
            )
        counts.append((q // head, k // head))
    return tuple(q for q, _ in counts), tuple(k for _, k in counts)


def _stretch(source: Weights) -> float:
    """The factor that positions are divided by, as llama.cpp reads it."""
    kind = str(_number(source, "rope.scaling.type", "linear"))
    if kind == "none":
        return 1.0
    factor = float(_number(source, "rope.scaling.factor", 0.0) or _number(source, "rope.scale_linear", 0.0) or 1.0)
    if kind != "linear" and factor != 1.0:
        raise RecipeError(
            f"{source.called} stretches its positions by {kind}, which cannot be trained here",
            hint="Known are files without stretched positions, with linearly stretched ones, and those of Llama 3.",
            scaling=kind,
        )
    return factor


def _number(source: Weights, key: str, default: Any, *, whole_list: bool = False) -> Any:
    found = source.value(f"{source.architecture}.{key}", default)
    if isinstance(found, list) and not whole_list:
        raise RecipeError(
            f"{source.called} has several values for {source.architecture}.{key}",
            hint="Such a model cannot be trained here.",
        )
    return found
