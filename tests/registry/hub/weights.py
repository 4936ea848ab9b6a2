"""Weights of a few hundred bytes, and a folder of them."""

from __future__ import annotations

import json
import pickle
import random
import struct


def _safetensors(dtype: str, elements: int, body: bytes) -> bytes:
    header = json.dumps({"w": {"dtype": dtype, "shape": [elements], "data_offsets": [0, len(body)]}}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + body


def safetensors_bytes(*, seed: int = 0) -> bytes:
    """A valid file of 16 numbers; those of another seed differ."""
    return _safetensors("F32", 16, bytes([seed]) * 64)


def noise_bytes(seed: int, size: int) -> bytes:
    """A valid safetensors file of `size` bytes of chance, and its header."""
    return _safetensors("U8", size, random.Random(seed).randbytes(size))


def gguf_bytes() -> bytes:
    """A valid GGUF file of one tensor."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    key = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    row = text("token_embd.weight") + struct.pack("<IQIQ", 1, 64, 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + key + row
    return head + b"\0" * (-len(head) % 32) + bytes(256)


def pickle_bytes() -> bytes:
    """A pickle that would make a file where it is loaded."""

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, ("executed", "w")

    return pickle.dumps(Trap())


#: A model as clients lay it out, by path.
SMOL = {
    "README.md": b"---\nlicense: apache-2.0\ntags: [tiny]\n---\n# Tiny\n",
    "config.json": json.dumps({"architectures": ["LlamaForCausalLM"], "vocab_size": 9}).encode(),
    "model.safetensors": safetensors_bytes(),
    "tokenizer_config.json": b'{"tokenizer_class": "GPT2Tokenizer"}',
    "sub/notes with blanks.txt": "grün\n".encode(),
}
