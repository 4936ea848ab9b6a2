"""Tiny files of weights, and the packages and archives they come in."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import random
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path


def gguf_bytes(*, seed: int = 0, quantised: bool = False, elements: int = 64) -> bytes:
    """A valid GGUF file of one tensor; files of different `seed` differ. With `quantised` its tensor is Q4_0."""

    def text(value: str) -> bytes:
        raw = value.encode()
        return struct.pack("<Q", len(raw)) + raw

    keys = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("general.file_type") + struct.pack("<II", 4, 2 if quantised else 0),
        text("llama.context_length") + struct.pack("<II", 4, 2048),
        text("tokenizer.ggml.model") + struct.pack("<I", 8) + text("gpt2"),
    ]
    row = text("token_embd.weight") + struct.pack("<IQIQ", 1, elements, 2 if quantised else 0, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(keys)) + b"".join(keys) + row
    head += b"\0" * (-len(head) % 32)
    body = bytes([seed % 256]) * (elements // 32 * 18 if quantised else 4 * elements)
    return head + body


def safetensors_bytes(*, seed: int = 0, elements: int = 16) -> bytes:
    """A valid safetensors file of one tensor."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [elements], "data_offsets": [0, 4 * elements]}}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + bytes([seed % 256]) * (4 * elements)


def noise_bytes(seed: int, size: int, *, dtype: str = "U8") -> bytes:
    """A valid safetensors file of about `size` bytes that look like chance; files of another seed have others."""
    body = random.Random(seed).randbytes(size)
    shape = [size] if dtype == "U8" else [size // 128, 64]
    header = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + body


def config_bytes() -> bytes:
    return json.dumps({"architectures": ["LlamaForCausalLM"], "vocab_size": 9, "max_position_embeddings": 128}).encode()


def pickle_bytes() -> bytes:
    """A pickle that would make the file `executed` where it is loaded."""

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, ("executed", "w")

    return pickle.dumps(Trap())


def model_folder(folder: Path, *, seed: int = 0) -> Path:
    """A folder as the hub has it: one safetensors file and what belongs beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(safetensors_bytes(seed=seed))
    (folder / "config.json").write_bytes(config_bytes())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}', encoding="utf-8")
    return folder


def wheel(
    directory: Path,
    package: str,
    version: str,
    members: Mapping[str, bytes],
    *,
    record: Mapping[str, bytes] | None = None,
) -> Path:
    """A wheel with these members; `record` is what its RECORD is made from where that is not the truth."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = package.replace("-", "_")
    about = f"{stem}-{version}.dist-info"
    everything = {
        **members,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [f"{about}/RECORD,,"]
    for name, content in {**everything, **(record or {})}.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}")
    path = directory / f"{stem}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in everything.items():
            archive.writestr(name, content)
        archive.writestr(f"{about}/RECORD", "\n".join(lines))
    return path
