"""Small GGUF files for the tests, written here from the specification and with none of the code under test."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

#: GGUF's numbers of the types of values.
U8, U32, I32, F32, BOOL, STRING, ARRAY, U64, F64 = 0, 4, 5, 6, 7, 8, 9, 10, 12
_PACK = {U8: "<B", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?", U64: "<Q", F64: "<d"}
#: ggml's numbers of the types of tensors that this writer packs by itself.
_KINDS = {"F32": (0, "<f4"), "F16": (1, "<f2"), "I32": (26, "<i4"), "BF16": (30, "<u2")}

VOCABULARY = 288


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, given: Any) -> bytes:
    """A value with its type before it; a list is (type of its entries, entries)."""
    if kind == ARRAY:
        inner, entries = given
        packed = b"".join(text(one) if inner == STRING else struct.pack(_PACK[inner], one) for one in entries)
        return struct.pack("<IIQ", ARRAY, inner, len(entries)) + packed
    return struct.pack("<I", kind) + (text(given) if kind == STRING else struct.pack(_PACK[kind], given))


@dataclass
class Array:
    """A tensor: `shape` outermost first, the number of its type, its data."""

    shape: tuple[int, ...]
    number: int
    data: bytes

    @staticmethod
    def of(numbers: np.ndarray[Any, Any], kind: str = "F32") -> Array:
        number, layout = _KINDS[kind]
        if kind == "BF16":
            packed = (np.ascontiguousarray(numbers, "<f4").view("<u4") >> 16).astype("<u2")
        else:
            packed = numbers.astype(layout)
        return Array(numbers.shape, number, packed.tobytes())


@dataclass
class File:
    """A whole file; a test changes what it wants to be otherwise."""

    keys: dict[str, tuple[int, Any]]
    tensors: dict[str, Array]
    alignment: int = 32
    version: int = 3
    padded: bool = True
    #: What replaces the offset that a tensor would have.
    offsets: dict[str, int] = field(default_factory=dict)
    #: What replaces the name that a tensor would have.
    names: dict[str, str] = field(default_factory=dict)

    def __bytes__(self) -> bytes:
        keys = dict(self.keys)
        if self.alignment != 32:
            keys["general.alignment"] = (U32, self.alignment)
        parts = [b"GGUF", struct.pack("<IQQ", self.version, len(self.tensors), len(keys))]
        parts += [text(key) + value(*given) for key, given in keys.items()]
        offset = 0
        data: list[bytes] = []
        for name, array in self.tensors.items():
            shape = struct.pack(f"<I{len(array.shape)}Q", len(array.shape), *reversed(array.shape))
            place = struct.pack("<IQ", array.number, self.offsets.get(name, offset))
            parts.append(text(self.names.get(name, name)) + shape + place)
            data += [array.data, bytes(-len(array.data) % self.alignment)]
            offset += len(data[-2]) + len(data[-1])
        header = b"".join(parts)
        if not self.padded:
            data.pop()
        return header + bytes(-len(header) % self.alignment) + b"".join(data)

    def write(self, path: Path) -> Path:
        path.write_bytes(bytes(self))
        return path


def tiny(
    *, hidden: int = 64, feed_forward: int = 128, layers: int = 2, kind: str = "F32", tied: bool = False, seed: int = 1
) -> File:
    """A llama with random weights and a tokenizer of bytes and letters, which llama.cpp loads and runs."""
    generator = np.random.default_rng(seed)
    heads, shared = 4, 2
    width = hidden // heads

    def weights(*shape: int) -> Array:
        return Array.of(generator.normal(size=shape, scale=0.15).astype(np.float32), kind)

    def ones() -> Array:
        return Array.of((1 + generator.normal(size=hidden, scale=0.1)).astype(np.float32))

    tensors = {"token_embd.weight": weights(VOCABULARY, hidden)}
    for layer in range(layers):
        block = {
            "attn_norm": ones(),
            "attn_q": weights(hidden, hidden),
            "attn_k": weights(shared * width, hidden),
            "attn_v": weights(shared * width, hidden),
            "attn_output": weights(hidden, hidden),
            "ffn_norm": ones(),
            "ffn_gate": weights(feed_forward, hidden),
            "ffn_up": weights(feed_forward, hidden),
            "ffn_down": weights(hidden, feed_forward),
        }
        tensors |= {f"blk.{layer}.{part}.weight": array for part, array in block.items()}
    tensors["output_norm.weight"] = ones()
    if not tied:
        tensors["output.weight"] = weights(VOCABULARY, hidden)
    letters = "▁abcdefghijklmnopqrstuvwxyz,."
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    assert len(tokens) == VOCABULARY
    keys: dict[str, tuple[int, Any]] = {
        "general.architecture": (STRING, "llama"),
        "general.name": (STRING, "Tiny é"),
        "general.file_type": (U32, {"F32": 0, "F16": 1, "BF16": 32}[kind]),
        "llama.block_count": (U32, layers),
        "llama.context_length": (U32, 512),
        "llama.embedding_length": (U32, hidden),
        "llama.feed_forward_length": (U32, feed_forward),
        "llama.attention.head_count": (U32, heads),
        "llama.attention.head_count_kv": (U32, shared),
        "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        "llama.rope.dimension_count": (U32, width),
        "llama.vocab_size": (U32, VOCABULARY),
        "tokenizer.ggml.model": (STRING, "llama"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, tokens)),
        "tokenizer.ggml.scores": (ARRAY, (F32, [0.0] * len(tokens))),
        "tokenizer.ggml.token_type": (ARRAY, (I32, [2, 3, 3, *[6] * 256, *[1] * len(letters)])),
        "tokenizer.ggml.bos_token_id": (U32, 1),
        "tokenizer.ggml.eos_token_id": (U32, 2),
        "tokenizer.ggml.unknown_token_id": (U32, 0),
        "tokenizer.ggml.add_bos_token": (BOOL, True),
    }
    return File(keys, tensors)
