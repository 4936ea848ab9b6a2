"""A llama of random float32 weights as a GGUF file, and the same computed with NumPy: what goes into its layers."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LETTERS = "▁abcdefghijklmnopqrstuvwxyz.,"
BOS = 1
FIRST_LETTER = 3 + 256


@dataclass
class TinyLlama:
    """`experts` of which `used` are taken for each token; 0: a plain feed-forward. Two layers, tied embeddings."""

    experts: int = 0
    used: int = 2
    add_bos: bool = True
    architecture: str = "llama"
    context: int = 128
    weights: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    width, heads, kv_heads, inner, layers = 32, 4, 2, 48, 2
    eps, theta = 1e-5, 10000.0

    def __post_init__(self) -> None:
        random = np.random.default_rng(7)

        def matrix(*shape: int) -> NDArray[np.float32]:
            return (random.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

        def norm() -> NDArray[np.float32]:
            return (1 + 0.3 * random.standard_normal(self.width)).astype(np.float32)

        small = self.width * self.kv_heads // self.heads
        self.weights = {"token_embd.weight": matrix(len(self.tokens), self.width) * 4, "output_norm.weight": norm()}
        for n in range(self.layers):
            block = {
                "attn_norm": norm(),
                "attn_q": matrix(self.width, self.width) * 2,
                "attn_k": matrix(small, self.width) * 2,
                "attn_v": matrix(small, self.width),
                "attn_output": matrix(self.width, self.width),
                "ffn_norm": norm(),
            }
            if self.experts:
                block["ffn_gate_inp"] = matrix(self.experts, self.width)
            some = (self.experts,) if self.experts else ()
            kind = "_exps" if self.experts else ""
            block[f"ffn_gate{kind}"] = matrix(*some, self.inner, self.width)
            block[f"ffn_up{kind}"] = matrix(*some, self.inner, self.width)
            block[f"ffn_down{kind}"] = matrix(*some, self.width, self.inner)
            self.weights |= {f"blk.{n}.{name}.weight": weight for name, weight in block.items()}

    @property
    def tokens(self) -> list[str]:
        return ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *LETTERS]

    def tokenised(self, text: str) -> list[int]:
        """Every letter is a token, and a space comes before the text; other characters are their bytes."""
        found = []
        for letter in "▁" + text.replace(" ", "▁"):
            if letter in LETTERS:
                found.append(FIRST_LETTER + LETTERS.index(letter))
            else:
                found += [3 + byte for byte in letter.encode()]
        return found

    def write(self, path: Path) -> Path:
        tokens = self.tokens
        kinds = [2, 3, 3] + [6] * 256 + [1] * len(LETTERS)
        keys: dict[str, Any] = {
            "general.architecture": self.architecture,
            f"{self.architecture}.block_count": self.layers,
            f"{self.architecture}.context_length": self.context,
            f"{self.architecture}.embedding_length": self.width,
            f"{self.architecture}.feed_forward_length": self.inner,
            f"{self.architecture}.attention.head_count": self.heads,
            f"{self.architecture}.attention.head_count_kv": self.kv_heads,
            f"{self.architecture}.attention.layer_norm_rms_epsilon": self.eps,
            f"{self.architecture}.rope.freq_base": self.theta,
            f"{self.architecture}.rope.dimension_count": self.width // self.heads,
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [0.0] * len(tokens),
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.bos_token_id": BOS,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.add_bos_token": self.add_bos,
        }
        if self.experts:
            keys[f"{self.architecture}.expert_count"] = self.experts
            keys[f"{self.architecture}.expert_used_count"] = self.used
        path.write_bytes(gguf(keys, self.weights))
        return path

    def inputs(self, window: list[int]) -> dict[str, Array]:
        """What goes into each matrix, (positions, columns) of float64, at one window of tokens."""
        weights = {name: weight.astype(np.float64) for name, weight in self.weights.items()}
        seen: dict[str, Array] = {}

        def linear(name: str, x: Array) -> Array:
            seen[name] = x
            return x @ weights[name].T

        x = weights["token_embd.weight"][window]
        for n in range(self.layers):
            at = f"blk.{n}."
            y = self._norm(x, weights[at + "attn_norm.weight"])
            x = x + linear(at + "attn_output.weight", self._attention(at, y, linear))
            y = self._norm(x, weights[at + "ffn_norm.weight"])
            x = x + (self._experts(at, y, linear, weights, seen) if self.experts else self._dense(at, y, linear))
        seen["token_embd.weight"] = self._norm(x, weights["output_norm.weight"])
        return seen

    def _norm(self, x: Array, weight: Array) -> Array:
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + self.eps) * weight

    def _attention(self, at: str, y: Array, linear: Any) -> Array:
        count, size = len(y), self.width // self.heads
        q = self._turned(linear(at + "attn_q.weight", y).reshape(count, self.heads, size))
        k = self._turned(linear(at + "attn_k.weight", y).reshape(count, self.kv_heads, size))
        v = linear(at + "attn_v.weight", y).reshape(count, self.kv_heads, size)
        out = np.empty((count, self.heads, size))
        for head in range(self.heads):
            kv = head * self.kv_heads // self.heads
            scores = q[:, head] @ k[:, kv].T / np.sqrt(size)
            scores[np.triu_indices(count, 1)] = -np.inf
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[:, head] = shares / shares.sum(axis=1, keepdims=True) @ v[:, kv]
        return out.reshape(count, self.width)

    def _turned(self, x: Array) -> Array:
        """Rotary positions as GGUF has llama's rows: each pair lies side by side."""
        half = x.shape[2] // 2
        angles = np.arange(len(x))[:, None] * self.theta ** (-np.arange(half) / half)
        turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None]
        return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)

    def _dense(self, at: str, y: Array, linear: Any) -> Array:
        gate, up = linear(at + "ffn_gate.weight", y), linear(at + "ffn_up.weight", y)
        return linear(at + "ffn_down.weight", gate / (1 + np.exp(-gate)) * up)

    def _experts(self, at: str, y: Array, linear: Any, weights: dict[str, Array], seen: dict[str, Array]) -> Array:
        logits = linear(at + "ffn_gate_inp.weight", y)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        out = np.zeros_like(y)
        best = np.argsort(-logits, axis=1)[:, : self.used]
        for expert in range(self.experts):
            rows = (best == expert).any(axis=1)
            gate, up = (y[rows] @ weights[f"{at}ffn_{name}_exps.weight"][expert].T for name in ("gate", "up"))
            down = gate / (1 + np.exp(-gate)) * up
            for name, x in (("gate", y[rows]), ("up", y[rows]), ("down", down)):
                seen[f"{at}ffn_{name}_exps.weight[{expert}]"] = x
            share = shares[rows, expert] / np.take_along_axis(shares[rows], best[rows], axis=1).sum(axis=1)
            out[rows] += share[:, None] * (down @ weights[at + "ffn_down_exps.weight"][expert].T)
        return out


def gguf(keys: dict[str, Any], tensors: dict[str, NDArray[np.float32]]) -> bytes:
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
    data = b""
    for name, tensor in tensors.items():
        head += text(name) + struct.pack(f"<I{tensor.ndim}Q", tensor.ndim, *reversed(tensor.shape))
        head += struct.pack("<IQ", 0, len(data))
        data += tensor.tobytes()
        data += bytes(-len(data) % 32)
    return head + bytes(-len(head) % 32) + data
