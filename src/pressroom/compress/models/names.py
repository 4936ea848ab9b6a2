"""How GGUF files and transformers call the same: tensors, the order of rotary rows, and the settings of a model.

Only names and NumPy arrays, no PyTorch. GGUF interleaves the rows of llama's q and k, so that the two numbers which
rotary positions turn lie side by side; transformers keeps the first halves before the second ones.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pressroom.kernel import RecipeError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: What gives the value of a key of the metadata, or the default: `Weights.value`.
Value = Callable[[str, Any], Any]
Shapes = Mapping[str, tuple[int, ...]]

#: The factors by which llama 3 stretches its rotary wavelengths, which GGUF files keep as a tensor.
ROPE_FREQS = "rope_freqs.weight"

_BLOCK = re.compile(r"blk\.(0|[1-9][0-9]*)\.(.+)\.(weight|bias)")
_LAYER = re.compile(r"model\.layers\.(0|[1-9][0-9]*)\.(.+)\.(weight|bias)")
_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ENDS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PARTS_BACK = {theirs: ours for ours, theirs in _PARTS.items()}
_ENDS_BACK = {theirs: ours for ours, theirs in _ENDS.items()}
# Buffers that old checkpoints hold, and which are computed from the settings.
_COMPUTED = re.compile(r"(model\.layers\.\d+\.self_attn\.)?(model\.)?rotary_emb\.inv_freq")
_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_FEED_FORWARD = ("ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """One that both sides know: `gguf` is general.architecture, `model_type` and `causal` what config.json says.

    `interleaved`: the rows of q and k are in another order in GGUF. `qkv_bias`: q, k and v always have a bias.
    `qk_norm`: the heads of q and k are normed. `optional_bias`: config.json says whether there are biases.
    """

    gguf: str
    model_type: str
    causal: str
    interleaved: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    optional_bias: bool = False


#: What a file may be; of several of one GGUF name the first is what such a file becomes.
ARCHITECTURES = (
    Architecture(gguf="llama", model_type="llama", causal="LlamaForCausalLM", interleaved=True, optional_bias=True),
    Architecture(gguf="llama", model_type="mistral", causal="MistralForCausalLM", interleaved=True),
    Architecture(gguf="qwen2", model_type="qwen2", causal="Qwen2ForCausalLM", qkv_bias=True),
    Architecture(gguf="qwen3", model_type="qwen3", causal="Qwen3ForCausalLM", qk_norm=True),
)


def of_gguf(name: str) -> Architecture:
    """The architecture that a GGUF file says it is of. Raises RecipeError where we do not know it."""
    return _known(name, {one.gguf: one for one in reversed(ARCHITECTURES)}, "architecture")


def of_config(config: Mapping[str, Any]) -> Architecture:
    """The architecture of a model's config.json. Raises RecipeError where we do not know it."""
    found = _known(
        str(config.get("model_type", "")), {one.model_type: one for one in ARCHITECTURES}, "model_type of config.json"
    )
    named = config.get("architectures") or [found.causal]
    if named != [found.causal]:
        raise RecipeError(
            f"config.json says that the model is {named}, and {found.model_type} is handled as {found.causal}",
            hint="Take the model that generates text, not one with another head.",
            architectures=named,
        )
    return found


def to_hf(name: str) -> str | None:
    """What transformers calls a tensor of a GGUF file; None where it has none for it."""
    found = _BLOCK.fullmatch(name)
    if found is None:
        return _ENDS.get(name)
    part = _PARTS.get(found[2])
    return None if part is None else f"model.layers.{found[1]}.{part}.{found[3]}"


def to_gguf(name: str) -> str | None:
    """What a GGUF file calls a tensor of transformers; None where it has none for it."""
    found = _LAYER.fullmatch(name)
    if found is None:
        return _ENDS_BACK.get(name)
    part = _PARTS_BACK.get(found[2])
    return None if part is None else f"blk.{found[1]}.{part}.{found[3]}"


def is_computed(name: str) -> bool:
    """Whether a tensor of transformers is no weight but follows from the settings."""
    return _COMPUTED.fullmatch(name) is not None


def heads_of(name: str, architecture: Architecture, config: Mapping[str, Any]) -> int:
    """Into how many heads the rows of a tensor (by its GGUF name) are interleaved; 0 where they are not."""
    found = _BLOCK.fullmatch(name)
    if found is None or not architecture.interleaved or found[2] not in ("attn_q", "attn_k"):
        return 0
    heads = int(config["num_attention_heads"])
    return heads if found[2] == "attn_q" else int(config.get("num_key_value_heads") or heads)


def split_halves(rows: NDArray[np.generic], heads: int) -> NDArray[Any]:
    """Rows of GGUF in the order of transformers; a copy where heads is not 0."""
    if not heads:
        return rows
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def interleaved(rows: NDArray[np.generic], heads: int) -> NDArray[Any]:
    """Rows of transformers in the order of GGUF; a copy where heads is not 0."""
    if not heads:
        return rows
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def config_from(value: Value, shapes: Shapes, *, freqs: NDArray[np.float32] | None = None) -> dict[str, Any]:
    """config.json of the model in a GGUF file: what its `architectures` class needs, without dtype and token ids.

    `freqs` is the tensor `rope_freqs.weight` where the file has one.

    Raises:
        RecipeError: the architecture is not known, or the file has what it does not, all of it named.
    """
    said = str(value("general.architecture", ""))
    architecture = of_gguf(said)
    wrong: list[str] = []

    def number(key: str, default: Any = None) -> Any:
        found = value(f"{said}.{key}", default)
        if isinstance(found, list):
            if len(set(found)) != 1:
                wrong.append(f"{said}.{key} differs from layer to layer")
            found = found[0] if found else default
        if found is None:
            wrong.append(f"{said}.{key} is missing")
            return 1
        return found

    hidden, heads, layers = number("embedding_length"), number("attention.head_count"), number("block_count")
    kv_heads = number("attention.head_count_kv", heads)
    head = number("attention.key_length", number("rope.dimension_count", max(1, hidden // max(1, heads))))
    if number("attention.value_length", head) != head:
        wrong.append("keys and values are of different lengths")
    if number("rope.dimension_count", head) != head:
        wrong.append("only a part of each head has rotary positions")
    if number("expert_count", 0):
        wrong.append("it is a mixture of experts")
    embedding = shapes.get("token_embd.weight")
    if embedding is None:
        wrong.append("token_embd.weight is missing")
    config: dict[str, Any] = {
        "architectures": [architecture.causal],
        "model_type": architecture.model_type,
        "vocab_size": 0 if embedding is None else embedding[0],
        "hidden_size": hidden,
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head,
        "hidden_act": "silu",
        "max_position_embeddings": number("context_length"),
        "rms_norm_eps": _short(number("attention.layer_norm_rms_epsilon")),
        "rope_theta": _short(number("rope.freq_base", 10000.0)),
        "tie_word_embeddings": "output.weight" not in shapes,
        "attention_dropout": 0.0,
    }
    scaling = _scaling_from(value, said, config, freqs, wrong)
    if scaling is not None:
        config["rope_scaling"] = scaling
    if architecture.optional_bias:
        config |= _biases_from(shapes, layers, wrong)
    expected = expected_names(architecture, config)
    missing = [name for name in expected if name not in shapes]
    extra = [name for name in shapes if name not in expected and name != ROPE_FREQS]
    wrong += [f"{name} is missing" for name in missing] + [f"{name} is not of a {said}" for name in extra]
    if wrong:
        raise RecipeError(
            f"the file cannot become a {architecture.causal} of transformers: {_some(wrong)}",
            hint="Take a file of the plain architecture.",
            problems=wrong,
        )
    return config


def metadata_from(config: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """The keys of a GGUF file for a config.json, without those of the tokenizer and of general.* but architecture.

    Raises:
        RecipeError: the architecture is not known, or the config says what llama.cpp would not do; all of it named.
    """
    architecture = of_config(config)
    at, wrong = architecture.gguf, []

    def whole(key: str) -> int:
        found = config.get(key)
        if type(found) is int and found > 0:
            return found
        wrong.append(f"{key} = {found!r} is not a number of something")
        return 1

    heads = whole("num_attention_heads")
    kv_heads = whole("num_key_value_heads") if config.get("num_key_value_heads") is not None else heads
    hidden = whole("hidden_size")
    head = whole("head_dim") if config.get("head_dim") is not None else hidden // heads
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        wrong.append(f"hidden_act = {config['hidden_act']!r}, and llama.cpp computes silu")
    if config.get("use_sliding_window") or (architecture.model_type == "mistral" and _window(config)):
        wrong.append("it looks only at a window of the text, which this llama.cpp architecture does not")
    if config.get("quantization_config"):
        wrong.append("its weights are quantised already")
    found: dict[str, str | int | float | bool] = {
        "general.architecture": at,
        f"{at}.block_count": whole("num_hidden_layers"),
        f"{at}.context_length": whole("max_position_embeddings"),
        f"{at}.embedding_length": hidden,
        f"{at}.feed_forward_length": whole("intermediate_size"),
        f"{at}.attention.head_count": heads,
        f"{at}.attention.head_count_kv": kv_heads,
        f"{at}.attention.key_length": head,
        f"{at}.attention.value_length": head,
        f"{at}.attention.layer_norm_rms_epsilon": float(config.get("rms_norm_eps", 1e-6)),
        f"{at}.rope.dimension_count": head,
        f"{at}.rope.freq_base": float(rope_of(config).get("rope_theta", 10000.0)),
        f"{at}.vocab_size": whole("vocab_size"),
    }
    rope = rope_of(config)
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        found[f"{at}.rope.scaling.type"] = kind
        found[f"{at}.rope.scaling.factor"] = float(rope["factor"])
        if kind == "yarn":
            original = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
            found[f"{at}.rope.scaling.original_context_length"] = int(original)
    elif kind not in ("default", "llama3"):
        wrong.append(f"rotary positions are scaled by {kind!r}, and linear, yarn and llama3 are handled")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        wrong.append("only a part of each head has rotary positions")
    if wrong:
        raise RecipeError(
            f"this {architecture.causal} cannot become a GGUF file: {_some(wrong)}",
            hint="Take a model of the plain architecture, in 16 or 32 bits.",
            problems=wrong,
        )
    return found


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """How rotary positions are computed: rope_theta, rope_type and what it needs, from any age of config.json."""
    old = dict(config.get("rope_scaling") or {})
    if "type" in old:
        old.setdefault("rope_type", old.pop("type"))
    found = {"rope_theta": config.get("rope_theta", 10000.0), "rope_type": "default"} | old
    return found | dict(config.get("rope_parameters") or {})


def rope_freqs(config: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """The tensor `rope_freqs.weight` that a config.json asks for; None where it asks for none."""
    import numpy as np

    rope = rope_of(config)
    if rope.get("rope_type") != "llama3":
        return None
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    low, high, factor = (float(rope[key]) for key in ("low_freq_factor", "high_freq_factor", "factor"))
    context = float(rope["original_max_position_embeddings"])
    found = []
    for at in range(0, head, 2):
        wavelength = 2 * math.pi * float(rope["rope_theta"]) ** (at / head)
        if wavelength < context / high:
            found.append(1.0)
        elif wavelength > context / low:
            found.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, dtype=np.float32)


def expected_names(architecture: Architecture, config: Mapping[str, Any]) -> list[str]:
    """The GGUF names of all tensors that a model of this config has, in the order of its layers."""
    parts = [("attn_norm", "weight")]
    biased: tuple[str, ...] = ("attn_q", "attn_k", "attn_v") if architecture.qkv_bias else ()
    if architecture.optional_bias:
        biased = _ATTENTION if config.get("attention_bias") else ()
        biased += _FEED_FORWARD if config.get("mlp_bias") else ()
    for part in _ATTENTION:
        parts += [(part, "weight"), *([(part, "bias")] if part in biased else [])]
    if architecture.qk_norm:
        parts += [("attn_q_norm", "weight"), ("attn_k_norm", "weight")]
    parts.append(("ffn_norm", "weight"))
    for part in _FEED_FORWARD:
        parts += [(part, "weight"), *([(part, "bias")] if part in biased else [])]
    found = ["token_embd.weight"]
    found += [f"blk.{n}.{part}.{end}" for n in range(int(config["num_hidden_layers"])) for part, end in parts]
    found.append("output_norm.weight")
    if not config.get("tie_word_embeddings", False):
        found.append("output.weight")
    return found


def _known(name: str, known: Mapping[str, Architecture], what: str) -> Architecture:
    found = known.get(name)
    if found is None:
        names = ", ".join(sorted(known))
        raise RecipeError(
            f"the {what} {name!r} is not one that can be carried between GGUF and transformers",
            hint=did_you_mean(name, known, otherwise=f"Those that can: {names}."),
            asked=name,
            known=sorted(known),
        )
    return found


def _scaling_from(
    value: Value, said: str, config: Mapping[str, Any], freqs: NDArray[np.float32] | None, wrong: list[str]
) -> dict[str, Any] | None:
    kind = value(f"{said}.rope.scaling.type", "none")
    factor = value(f"{said}.rope.scaling.factor", None)
    if freqs is not None:
        found = _llama3(config, freqs)
        if found is None:
            wrong.append(f"{ROPE_FREQS} is not how llama 3 stretches its positions")
        return found
    if kind in ("none", ""):
        return None
    if kind not in ("linear", "yarn") or factor is None:
        wrong.append(f"rotary positions are scaled by {kind!r}, and linear and yarn are handled")
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": _short(factor)}
    if kind == "yarn":
        original = value(f"{said}.rope.scaling.original_context_length", config["max_position_embeddings"])
        scaling["original_max_position_embeddings"] = original
    return scaling


def _llama3(config: Mapping[str, Any], freqs: NDArray[np.float32]) -> dict[str, Any] | None:
    """The settings that give these factors; those that all llama 3 models share but for the factor."""
    import numpy as np

    scaling = {
        "rope_type": "llama3",
        "factor": _short(float(freqs.max())),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    again = rope_freqs({**config, "rope_scaling": scaling})
    close = again is not None and again.shape == freqs.shape and np.allclose(again, freqs, rtol=1e-5)
    return scaling if close else None


def _biases_from(shapes: Shapes, layers: int, wrong: list[str]) -> dict[str, bool]:
    found = {}
    for key, parts in (("attention_bias", _ATTENTION), ("mlp_bias", _FEED_FORWARD)):
        names = [f"blk.{n}.{part}.bias" for n in range(layers) for part in parts]
        there = sum(name in shapes for name in names)
        found[key] = there > 0
        if 0 < there < len(names):
            wrong.append(f"{there} of {len(names)} layers that go together have a bias")
    return found


def _window(config: Mapping[str, Any]) -> bool:
    window = config.get("sliding_window")
    return window is not None and window < config.get("max_position_embeddings", 0)


def _short(number: float) -> float:
    """The shortest number that is the same float32: 1e-05, and not 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(number)))


def _some(problems: list[str]) -> str:
    return "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
