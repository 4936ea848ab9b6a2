"""A small llama whose rows divide by 256, trained here: where formats of 2 and 3 bits can be compared.

SmolLM2's rows are 576 wide, and llama.cpp's formats of 2 and 3 bits come in blocks of 256: on it they fall back to more
bits. This one reads letters (and bytes, of which all other characters are made), has six layers of 256 and 768, and is
trained on the training text for some minutes.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _compress_reference import permuted
from _family import _renamed
from numpy.typing import NDArray

from pressroom.compress.numbers import number_format

STEPS = 600
_WIDTH, _INNER, _LAYERS, _HEADS, _GROUPS = 256, 768, 6, 4, 2
_EPSILON, _THETA = 1e-5, 10_000.0
_LETTERS = "▁" + "".join(chr(code) for code in range(33, 127))
_BATCH, _LENGTH, _RATE = 8, 256, 2e-3
_SEED = 20261122


def tokens(text: str) -> NDArray[np.int64]:
    """Letters are a token each, a space before the first; what is none is its bytes, as llama.cpp has it."""
    first = 3 + 256
    numbers = {letter: [first + at] for at, letter in enumerate(_LETTERS)}
    found: list[int] = []
    for letter in "▁" + text.replace(" ", "▁"):
        found += numbers.get(letter) or [3 + byte for byte in letter.encode()]
    return np.array(found)


def small(text: Path, target: Path, *, steps: int = STEPS, layers: int = _LAYERS) -> Path:
    """The model at `target`, trained and written where it is not there."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    model = _model(layers)
    _train(model, torch.from_numpy(tokens(text.read_text(encoding="utf-8"))), steps)
    state = model.state_dict()
    names = ["token_embd.weight", "output_norm.weight"]
    for layer in range(layers):
        parts = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
        names += [f"blk.{layer}.{part}.weight" for part in parts]
    made = {name: permuted(state[_renamed(name)].float().numpy(), name, (_HEADS, _GROUPS), back=True) for name in names}
    part = target.with_suffix(".part")
    part.write_bytes(_gguf(_metadata(layers), made))
    part.replace(target)
    return target


def _model(layers: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(_SEED)
    config = LlamaConfig(
        vocab_size=3 + 256 + len(_LETTERS),
        hidden_size=_WIDTH,
        intermediate_size=_INNER,
        num_hidden_layers=layers,
        num_attention_heads=_HEADS,
        num_key_value_heads=_GROUPS,
        max_position_embeddings=1024,
        rms_norm_eps=_EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": _THETA},
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        use_cache=False,
    )
    return LlamaForCausalLM(config).train()


def _train(model: Any, words: torch.Tensor, steps: int) -> None:
    random = torch.Generator().manual_seed(_SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    warm = min(50, max(1, steps // 10))
    for step in range(steps):
        rate = min(1.0, (step + 1) / warm) * (0.05 + 0.95 * (1 + np.cos(np.pi * step / steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = _RATE * rate
        starts = torch.randint(len(words) - _LENGTH, (_BATCH,), generator=random)
        passages = torch.stack([words[start : start + _LENGTH] for start in starts.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=passages, labels=passages).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps - 1:
            print(f"the small model: step {step + 1} of {steps}, loss {loss.item():.3f}", file=sys.stderr, flush=True)


def _metadata(layers: int) -> dict[str, Any]:
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *_LETTERS]
    return {
        "general.architecture": "llama",
        "general.name": "a small llama of letters",
        "llama.block_count": layers,
        "llama.context_length": 1024,
        "llama.embedding_length": _WIDTH,
        "llama.feed_forward_length": _INNER,
        "llama.attention.head_count": _HEADS,
        "llama.attention.head_count_kv": _GROUPS,
        "llama.attention.layer_norm_rms_epsilon": _EPSILON,
        "llama.rope.freq_base": _THETA,
        "llama.rope.dimension_count": _WIDTH // _HEADS,
        "llama.vocab_size": len(words),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.scores": [0.0] * len(words),
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(_LETTERS),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }


def _gguf(keys: dict[str, Any], tensors: dict[str, NDArray[np.float32]]) -> bytes:
    """A GGUF file: matrices in bf16, vectors in f32."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def value(given: Any) -> bytes:
        if isinstance(given, list):
            kind = {str: 8, float: 6, int: 5}[type(given[0])]
            return struct.pack("<IIQ", 9, kind, len(given)) + b"".join(value(one)[4:] for one in given)
        if isinstance(given, str):
            return struct.pack("<I", 8) + text(given)
        if isinstance(given, bool):
            return struct.pack("<IB", 7, given)
        return struct.pack("<If", 6, given) if isinstance(given, float) else struct.pack("<II", 4, given)

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    head += b"".join(text(key) + value(one) for key, one in keys.items())
    bf16 = number_format("bf16")
    data = b""
    for name, tensor in tensors.items():
        flat = tensor.ndim == 1
        head += text(name) + struct.pack(f"<I{tensor.ndim}Q", tensor.ndim, *reversed(tensor.shape))
        head += struct.pack("<IQ", 0 if flat else bf16.ggml or 0, len(data))
        data += tensor.astype("<f4").tobytes() if flat else bf16.encode(tensor).tobytes()
        data += bytes(-len(data) % 32)
    return head + bytes(-len(head) % 32) + data
