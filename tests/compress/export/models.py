"""Tiny models of several architectures as GGUF files."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.compress.weights.gguf_files import ARRAY, BOOL, F32, I32, STRING, U32, Array, File

from .vocabularies import byte_pair_keys

_KINDS = {str: STRING, bool: BOOL, int: U32, float: F32}


def keyed(key: str, value: Any) -> tuple[int, Any]:
    """A key's value with its type."""
    if isinstance(value, list):
        return ARRAY, (STRING if isinstance(value[0], str) else F32 if isinstance(value[0], float) else I32, value)
    return _KINDS[type(value)], value


def model(architecture: str, *, tied: bool = True, pre: str = "qwen2", inner: int = 128, kind: str = "F32") -> File:
    """Two layers of random weights; heads that are wider than hidden / heads for qwen3, as there."""
    generator = np.random.default_rng(3)
    hidden, heads, shared, layers = 64, 4, 2, 2
    head = 32 if architecture == "qwen3" else hidden // heads
    tokenizer = byte_pair_keys(pre)
    size = len(tokenizer["tokenizer.ggml.tokens"])

    def weights(*shape: int) -> Array:
        return Array.of(generator.normal(size=shape, scale=0.15).astype(np.float32), kind)

    def ones(count: int = hidden) -> Array:
        return Array.of((1 + generator.normal(size=count, scale=0.1)).astype(np.float32))

    def bias(count: int) -> Array:
        return Array.of(generator.normal(size=count, scale=0.1).astype(np.float32))

    tensors = {"token_embd.weight": weights(size, hidden)}
    for n in range(layers):
        block = {
            "attn_norm.weight": ones(),
            "attn_q.weight": weights(heads * head, hidden),
            "attn_k.weight": weights(shared * head, hidden),
            "attn_v.weight": weights(shared * head, hidden),
            "attn_output.weight": weights(hidden, heads * head),
            "ffn_norm.weight": ones(),
            "ffn_gate.weight": weights(inner, hidden),
            "ffn_up.weight": weights(inner, hidden),
            "ffn_down.weight": weights(hidden, inner),
        }
        if architecture == "qwen2":
            block |= {f"attn_{part}.bias": bias(heads * head if part == "q" else shared * head) for part in "qkv"}
        if architecture == "qwen3":
            block |= {"attn_q_norm.weight": ones(head), "attn_k_norm.weight": ones(head)}
        tensors |= {f"blk.{n}.{name}": array for name, array in block.items()}
    tensors["output_norm.weight"] = ones()
    if not tied:
        tensors["output.weight"] = weights(size, hidden)
    said: dict[str, Any] = {
        "general.architecture": architecture,
        "general.name": "tiny",
        f"{architecture}.block_count": layers,
        f"{architecture}.context_length": 512,
        f"{architecture}.embedding_length": hidden,
        f"{architecture}.feed_forward_length": inner,
        f"{architecture}.attention.head_count": heads,
        f"{architecture}.attention.head_count_kv": shared,
        f"{architecture}.attention.key_length": head,
        f"{architecture}.attention.value_length": head,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{architecture}.rope.freq_base": 50000.0,
        **tokenizer,
    }
    return File({key: keyed(key, value) for key, value in said.items()}, tensors)
