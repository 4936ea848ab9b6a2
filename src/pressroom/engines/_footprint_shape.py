"""What a model keeps of every token it reads, taken from the header of its weights.

The tensors are asked first, because they cannot lie about their own size: the rows of a layer's key matrix are the
numbers that the layer keeps of a token's keys. GGUF and safetensors name them differently and agree in that. What the
tensors do not say (fused matrices, packed weights, windows) is taken from the header's keys or `config.json`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pressroom.kernel import WeightsError
from pressroom.store import TensorInfo, WeightsInfo, inspect, inspect_folder

# `blk.3.attn_k.weight`, `model.layers.3.self_attn.k_proj.weight`, `transformer.h.3.attn.c_attn.weight`, …
_IN_LAYER = re.compile(r"(?:^|\.)(?:blk|layers?|h|blocks?)\.(\d+)\.(.+)$")
_OTHER_TOWERS = re.compile(r"vision|visual|audio|multi_modal|mmproj")
_KEYS = re.compile(r"(?:^|\.)(?:attn_k|k_proj|wk)\.weight$")
_VALUES = re.compile(r"(?:^|\.)(?:attn_v|v_proj|wv)\.weight$")
_FUSED = re.compile(r"(?:^|\.)(?:attn_qkv|qkv_proj|query_key_value|c_attn|Wqkv|in_proj)\.weight$")
_LATENT = re.compile(r"(?:^|\.)(?:attn_kv_a_mqa|kv_a_proj_with_mqa)\.weight$")
_WHOLE = re.compile(r"(?:^|\.)attn_kv_b\.weight$")
_ATTENTION = re.compile(r"attn|attention")
# Matrices of these types have as many rows as the layer has outputs; packed ones (I32, U8) do not.
_PLAIN = frozenset(("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"))
# GGUF says how wide a window is, and the architecture which layers have one: all but every n-th (from llama.cpp's
# models as of October 2026). One that is not listed is taken to have none, which is the larger figure.
_WINDOW_PERIODS = {
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "cohere2": 4,
    "exaone4": 4,
    "olmo2": 4,
    "llama4": 4,
    "smallthinker": 4,
}
# Models that read a text at once and generate nothing keep nothing.
_ENCODERS = frozenset(
    ("bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "nomic-bert", "modern-bert", "modernbert")
)
# Models have a few hundred at the most.
_MOST_LAYERS = 10_000
_STATE_SIZES = ("ssm.state_size", "mamba_d_state", "ssm_state_size", "state_size")
# States of recurrent layers are kept as F32, however the weights are.
_STATE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Layer:
    """Numbers kept of a token: `keys` and `values`; of the last `window` tokens only, 0: of all. `expanded` is how many
    an engine keeps that does not know latent attention. `state` is the bytes that a recurrent layer keeps of a text
    instead, whatever its length."""

    keys: int
    values: int
    window: int = 0
    expanded: int = 0
    state: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A model as memory sees it: sizes in bytes, widths in numbers. `widest` is the most that one layer holds of a
    token while it computes. `guesses` says what no header told, and what was taken instead."""

    info: WeightsInfo
    weights: int
    layers: tuple[Layer, ...]
    hidden: int
    heads: int
    widest: int
    vocabulary: int
    #: The header's own keys, or those of config.json.
    config: Mapping[str, Any] = field(default_factory=dict)
    guesses: tuple[str, ...] = ()

    def numbers(self, tokens: int, *, spare: int = 0, multiple: int = 1, expanded: bool = False) -> int:
        """Numbers kept of a text of `tokens` tokens. A window holds `spare` more than it is wide, in multiples;
        `expanded` is for engines that do not know latent attention."""
        total = 0
        for layer in self.layers:
            kept = tokens if not layer.window else min(tokens, layer.window + spare)
            one = layer.expanded if expanded and layer.expanded else layer.keys + layer.values
            total += padded(kept, multiple) * one
        return total

    @property
    def state(self) -> int:
        """Bytes of the states of its recurrent layers, a text."""
        return sum(layer.state for layer in self.layers)

    @property
    def windowed(self) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.window)


def shape_of(model: Path) -> Shape:
    """The shape of a GGUF or safetensors file, or of a folder as Hugging Face lays it out. Reads headers only.

    Raises:
        WeightsError, NotFoundError, StoreError: as `pressroom.store.inspect` does.
    """
    if not model.is_dir():
        info = inspect(model)
        keys = _Keys(dict(info.metadata), prefix=f"{info.architecture}." if info.format == "gguf" else "")
        weights = model.stat().st_size if info.format == "gguf" else sum(tensor.nbytes for tensor in info.tensors)
        return _shaped(info, keys, weights)
    files = {path.relative_to(model).as_posix(): path for path in sorted(model.rglob("*")) if path.is_file()}
    info = inspect_folder(files)
    if info.format == "gguf":
        return shape_of(next(path for name, path in files.items() if name.endswith(".gguf")))
    return _shaped(info, _Keys(_config(model)), sum(tensor.nbytes for tensor in info.tensors))


def _config(folder: Path) -> dict[str, Any]:
    """The figures of the language model in `config.json`, which `inspect_folder` has checked."""
    path = next(path for path in (folder / "config.json", folder / "adapter_config.json") if path.is_file())
    values: dict[str, Any] = json.loads(path.read_bytes())
    inner = values.get("text_config")
    return {**values, **inner} if isinstance(inner, dict) else values


class _Keys:
    """The header's own figures, under whichever of their names is there; only sensible numbers count."""

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self.values = values
        self._prefix = prefix

    def number(self, *names: str) -> int | None:
        for name in names:
            value = self.values.get(self._prefix + name)
            if type(value) is int and 0 < value < 1 << 40:
                return value
        return None

    def kinds(self) -> list[str]:
        """What each layer is, where config.json says it (`layer_types`)."""
        found = self.values.get("layer_types")
        return found if isinstance(found, list) and all(isinstance(kind, str) for kind in found) else []


@dataclass(slots=True)
class _Found:
    """What the tensors of one layer say."""

    keys: int = 0
    values: int = 0
    fused: bool = False
    latent: int = 0
    whole: bool = False  # latent attention as older GGUF files have it: llama.cpp then keeps all heads
    packed: bool = False


def _shaped(info: WeightsInfo, keys: _Keys, weights: int) -> Shape:
    found, embedding, widest, deepest = _read_tensors(info)
    hidden = keys.number("embedding_length", "hidden_size", "n_embd", "d_model") or (embedding[1] if embedding else 0)
    count = keys.number("block_count", "num_hidden_layers", "n_layer", "num_layers", "n_layers") or deepest
    if not hidden or not count:
        raise WeightsError(
            "its header does not say how many layers the model has, or how wide they are",
            hint="A folder of safetensors needs its config.json.",
            architecture=info.architecture,
        )
    if count > _MOST_LAYERS:
        raise WeightsError(
            f"its header says that the model has {count:,} layers",
            hint="The file was altered or written by a faulty program: fetch it again from its publisher.",
            architecture=info.architecture,
        )
    heads = keys.number("attention.head_count", "num_attention_heads", "n_head", "n_heads") or max(1, hidden // 64)
    guesses: list[str] = []
    layers = _layers(info, keys, found, count=count, hidden=hidden, heads=heads, guesses=guesses)
    experts = keys.number("expert_used_count", "num_experts_per_tok", "moe_k") or 0
    expert = keys.number("expert_feed_forward_length", "moe_intermediate_size", "intermediate_size") or 0
    feed = keys.number("feed_forward_length", "intermediate_size", "n_inner") or widest or 4 * hidden
    kept = max((layer.keys + layer.values for layer in layers), default=0)
    return Shape(
        info=info,
        weights=weights,
        layers=layers,
        hidden=hidden,
        heads=heads,
        # Gate and up of the feed-forward part, of all experts that take part, and the few copies attention makes.
        widest=2 * max(feed, widest, experts * expert) + 7 * hidden + 2 * kept,
        config=keys.values,
        vocabulary=info.vocabulary or (embedding[0] if embedding else keys.number("vocab_size") or 32_000),
        guesses=tuple(guesses),
    )


def _read_tensors(info: WeightsInfo) -> tuple[dict[int, _Found], tuple[int, int] | None, int, int]:
    """The layers by number, the shape of the embedding, the most rows of a matrix in a layer, and how many layers."""
    layers: dict[int, _Found] = {}
    embedding: tuple[int, int] | None = None
    widest = 0
    for tensor in info.tensors:
        if _OTHER_TOWERS.search(tensor.name):
            continue
        inside = _IN_LAYER.search(tensor.name)
        if inside:
            layer = layers.setdefault(int(inside[1]), _Found())
            _note(layer, tensor, inside[2], plain=info.format == "gguf" or tensor.dtype in _PLAIN)
            if len(tensor.shape) == 2 and "experts" not in tensor.name:
                widest = max(widest, tensor.shape[0])
        elif len(tensor.shape) == 2 and re.search(r"token_embd|embed_tokens|wte|word_embeddings|embed_in", tensor.name):
            embedding = (tensor.shape[0], tensor.shape[1])
    return layers, embedding, widest, max(layers, default=-1) + 1


def _note(layer: _Found, tensor: TensorInfo, name: str, *, plain: bool) -> None:
    if not plain or len(tensor.shape) != 2:
        layer.packed = layer.packed or (not plain and bool(_ATTENTION.search(name)))
    elif _KEYS.search(name):
        layer.keys = tensor.shape[0]
    elif _VALUES.search(name):
        layer.values = tensor.shape[0]
    elif _LATENT.search(name):
        layer.latent = tensor.shape[0]
    elif _WHOLE.search(name):
        layer.whole = True
    elif _FUSED.search(name) and _ATTENTION.search(name):
        layer.fused = True


def _layers(
    info: WeightsInfo,
    keys: _Keys,
    found: Mapping[int, _Found],
    *,
    count: int,
    hidden: int,
    heads: int,
    guesses: list[str],
) -> tuple[Layer, ...]:
    kind = str(keys.values.get("model_type") or info.architecture or "").lower()
    if kind in _ENCODERS:
        return ()
    head = keys.number("attention.key_length", "head_dim") or max(1, hidden // heads)
    value_head = keys.number("attention.value_length", "v_head_dim") or head
    kv_heads = keys.number("attention.head_count_kv", "num_key_value_heads", "num_kv_heads")
    lora, rope = keys.number("kv_lora_rank") or 0, keys.number("qk_rope_head_dim") or 0
    key_width = keys.number("attention.key_length_mla", "attention.key_length") or rope + (
        keys.number("qk_nope_head_dim") or head
    )
    value_width = keys.number("attention.value_length_mla") or value_head
    attention = any(one.keys or one.fused or one.latent or one.packed for one in found.values())
    recurrent = keys.number(*_STATE_SIZES) is not None or kind.startswith(("mamba", "rwkv"))
    if kv_heads is None and not lora and not any(one.keys or one.latent for one in found.values()):
        if not recurrent:
            guesses.append(f"it does not say how many key-value heads it has: taken as all {heads}")
        kv_heads = heads
    kinds = keys.kinds()
    layers = []
    for number, window in enumerate(_windows(info, keys, count, guesses)):
        one = found.get(number, _Found())
        if one.latent or (lora and rope):
            everything = heads * (key_width + value_width)
            latent = everything if one.whole else one.latent or lora + rope
            layers.append(Layer(latent, 0, window, everything))
        elif one.keys:
            # Models that share one matrix for keys and values name it once.
            layers.append(Layer(one.keys, one.values or one.keys, window))
        elif (number < len(kinds) and "linear" in kinds[number]) or (
            not (one.fused or one.packed) and (attention or recurrent)
        ):
            layers.append(Layer(0, 0, state=_state(keys, hidden, guesses)))
        else:
            layers.append(Layer((kv_heads or heads) * head, (kv_heads or heads) * value_head, window))
    return tuple(layers)


def _windows(info: WeightsInfo, keys: _Keys, count: int, guesses: list[str]) -> list[int]:
    """How many tokens each layer looks back on, 0 for all."""
    width = keys.number("attention.sliding_window", "sliding_window", "attention_chunk_size")
    if width is None or keys.values.get("use_sliding_window") is False:
        return [0] * count
    kinds = keys.kinds()
    if len(kinds) == count:
        return [width if kind in ("sliding_attention", "chunked_attention") else 0 for kind in kinds]
    period = _WINDOW_PERIODS.get(str(keys.values.get("model_type") or info.architecture or "").replace("_text", ""))
    if period is None:
        guesses.append(f"it has a window of {width} tokens and does not say in which layers: taken as none")
        return [0] * count
    return [0 if number % period == period - 1 else width for number in range(count)]


def _state(keys: _Keys, hidden: int, guesses: list[str]) -> int:
    """Bytes that a recurrent layer keeps of a text."""
    inner = keys.number("ssm.inner_size", "mamba_d_inner", "intermediate_size") or 2 * hidden
    size = keys.number(*_STATE_SIZES)
    kernel = keys.number("ssm.conv_kernel", "mamba_d_conv", "conv_kernel", "linear_conv_kernel_dim") or 4
    groups = keys.number("ssm.group_count", "mamba_n_groups", "n_groups") or 1
    if size is None:
        value_heads, width = keys.number("linear_num_value_heads"), keys.number("linear_value_head_dim")
        if value_heads and width:
            return _STATE_BYTES * value_heads * width * ((keys.number("linear_key_head_dim") or width) + kernel)
        guess = "the state of its recurrent layers is not in the header: taken as 256 numbers for each of the width"
        if guess not in guesses:
            guesses.append(guess)
        size = 256
    return _STATE_BYTES * (inner * size + (kernel - 1) * (inner + 2 * groups * size))


def padded(tokens: int, multiple: int) -> int:
    """The next multiple."""
    return math.ceil(tokens / multiple) * multiple
