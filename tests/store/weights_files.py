"""Small files of weights for the tests, true by default and false where a test asks for it."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def strings(*values: str) -> bytes:
    return struct.pack("<IQ", STRING, len(values)) + b"".join(map(text, values))


@dataclass
class Row:
    """A line of a GGUF's table of tensors; `shape` innermost first, as the file has it."""

    name: str | bytes
    shape: tuple[int, ...] = (32, 4)
    kind: int = 0
    offset: int = 0
    dimensions: int | None = None

    def __bytes__(self) -> bytes:
        return (
            text(self.name)
            + struct.pack("<I", len(self.shape) if self.dimensions is None else self.dimensions)
            + struct.pack(f"<{len(self.shape)}Q", *self.shape)
            + struct.pack("<IQ", self.kind, self.offset)
        )


def default_keys() -> dict[str | bytes, tuple[int, bytes]]:
    return {
        "general.architecture": (STRING, text("llama")),
        "general.file_type": (U32, struct.pack("<I", 2)),
        "general.license": (STRING, text("apache-2.0")),
        "llama.context_length": (U32, struct.pack("<I", 2048)),
        "llama.rope.freq_base": (F32, struct.pack("<f", 10_000.0)),
        "tokenizer.ggml.model": (STRING, text("gpt2")),
        "tokenizer.ggml.pre": (STRING, text("smollm")),
        "tokenizer.ggml.add_bos_token": (BOOL, b"\1"),
        "tokenizer.ggml.tokens": (ARRAY, strings("<s>", "a", "", "été")),
        "tokenizer.ggml.scores": (ARRAY, struct.pack("<IQ4f", F32, 4, 0, 1, 2, 3)),
        "tokenizer.chat_template": (STRING, text("{% for message in messages %}{% endfor %}")),
    }


@dataclass
class Gguf:
    """Two tensors: 128 F32 numbers, then 64 Q4_0 ones."""

    keys: dict[str | bytes, tuple[int, bytes]] = field(default_factory=default_keys)
    rows: list[Row] = field(
        default_factory=lambda: [Row("embed.weight"), Row("block.0.weight", (64,), 2, 512)],
    )
    data: bytes = bytes(512 + 2 * 18)
    magic: bytes = b"GGUF"
    version: int = 3
    tensor_count: int | None = None
    key_count: int | None = None
    alignment: int = 32
    extra_keys: bytes = b""

    def header(self) -> bytes:
        return b"".join(
            [
                self.magic,
                struct.pack("<I", self.version),
                struct.pack("<Q", len(self.rows) if self.tensor_count is None else self.tensor_count),
                struct.pack("<Q", len(self.keys) if self.key_count is None else self.key_count),
                *(text(key) + struct.pack("<I", kind) + value for key, (kind, value) in self.keys.items()),
                self.extra_keys,
                *map(bytes, self.rows),
            ]
        )

    def __bytes__(self) -> bytes:
        header = self.header()
        return header + bytes(-len(header) % self.alignment) + self.data


def default_header() -> dict[str, Any]:
    return {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [8], "data_offsets": [24, 40]},
    }


def safetensors(header: object = None, data: bytes = bytes(40), *, length: int | None = None) -> bytes:
    """A safetensors file; `header` is the object, or the bytes that stand in its place."""
    if header is None:
        header = default_header()
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data
