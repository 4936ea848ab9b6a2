"""A folder of transformers as a GGUF file, so that all that works on GGUF works on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressroom.compress.export._gguf_file import Key, Tensor, write_gguf
from pressroom.compress.export._safetensors import FLOATS, Folder
from pressroom.compress.export._vocabulary import tokenizer_keys
from pressroom.compress.models import names
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pressroom.compress.numbers import NumberFormat

# llama.cpp's llama_ftype of files that are not quantised.
_FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32}


def gguf_plan(folder: Folder) -> tuple[dict[str, Key], list[Tensor]]:
    """The keys and tensors of the GGUF file: all that can be wrong is found here, before any weights are read.

    Raises:
        RecipeError: the architecture, the tokenizer or the tensors' types are not known, or tensors are missing.
        MissingDependencyError: the library `tokenizers` is missing.
    """
    config = dict(folder.config)
    metadata = names.metadata_from(config)
    architecture = names.of_config(config)
    if "tie_word_embeddings" not in config:
        config["tie_word_embeddings"] = "lm_head.weight" not in folder.tensors
    shapes = _shapes(architecture, config)
    wrong, found = [], {}
    for theirs, tensor in folder.tensors.items():
        ours = names.to_gguf(theirs)
        if names.is_computed(theirs) or (ours == "output.weight" and config["tie_word_embeddings"]):
            continue
        if ours not in shapes:
            wrong.append(f"{theirs} is not known")
        elif tensor.shape != shapes[ours]:
            wrong.append(f"{theirs} is {list(tensor.shape)}, and config.json makes it {list(shapes[ours])}")
        elif tensor.dtype not in FLOATS:
            wrong.append(f"{theirs} is {tensor.dtype}, and F32, F16 and BF16 are taken")
        else:
            found[ours] = theirs
    wrong += [f"{names.to_hf(ours)} is missing" for ours in shapes if ours not in found]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise RecipeError(
            f"{folder.called} does not hold a {architecture.causal} that can become GGUF: {'; '.join(wrong[:5])}{more}",
            hint="Take the whole model, in 16 or 32 bits.",
            problems=wrong,
        )
    metadata |= {"general.type": "model", "general.name": folder.called}
    tensors = [_tensor(folder, config, ours, found[ours]) for ours in shapes]
    freqs = names.rope_freqs(config)
    if freqs is not None:
        tensors.append(_plain(names.ROPE_FREQS, freqs))
    kinds = [one.format.name for one in tensors if len(one.shape) > 1]
    metadata["general.file_type"] = _FILE_TYPES[max(set(kinds), key=kinds.count)]
    return {**metadata, **tokenizer_keys(folder, shapes["token_embd.weight"][0])}, tensors


def write_from_folder(
    folder: Folder, path: Path, *, progress: Callable[[int, int], None] | None = None
) -> dict[str, Key]:
    """Write the model as GGUF, weights in the types they have, norms and biases in float32; returns the file's keys.

    Raises:
        RecipeError, MissingDependencyError: see `gguf_plan`. StoreFullError, StoreError: the disk.
    """
    keys, tensors = gguf_plan(folder)
    write_gguf(path, keys, tensors, progress=progress)
    return keys


def _shapes(architecture: names.Architecture, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape that every tensor must have, by its GGUF name, in the order of the file."""
    hidden, inner, heads = (int(config[key]) for key in ("hidden_size", "intermediate_size", "num_attention_heads"))
    head = int(config.get("head_dim") or hidden // heads)
    shared = int(config.get("num_key_value_heads") or heads) * head
    outputs = {
        "attn_q": (heads * head, hidden),
        "attn_k": (shared, hidden),
        "attn_v": (shared, hidden),
        "attn_output": (hidden, heads * head),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
        "attn_q_norm": (head,),
        "attn_k_norm": (head,),
    }
    found: dict[str, tuple[int, ...]] = {}
    for name in names.expected_names(architecture, config):
        part = name.split(".")[-2]
        if name in ("token_embd.weight", "output.weight"):
            found[name] = (int(config["vocab_size"]), hidden)
        elif name.endswith(".bias"):
            found[name] = outputs[part][:1]
        else:
            found[name] = outputs.get(part, (hidden,))
    return found


def _tensor(folder: Folder, config: Mapping[str, Any], ours: str, theirs: str) -> Tensor:
    from pressroom.compress.numbers import number_format

    tensor = folder.tensors[theirs]
    format = number_format(FLOATS[tensor.dtype] if len(tensor.shape) > 1 else "f32")
    heads = names.heads_of(ours, names.of_config(config), config)

    def made() -> NDArray[np.uint8]:
        rows = names.interleaved(folder.rows(theirs), heads)
        if not math.isfinite(float(abs(rows).max(initial=0.0))):
            raise RecipeError(f"the tensor {theirs} is not finite", hint="Fetch the model again.", tensor=theirs)
        return format.encode(rows.reshape(1, -1) if rows.ndim < 2 else rows)

    return Tensor(ours, tensor.shape, format, made)


def _plain(name: str, values: NDArray[np.float32]) -> Tensor:
    from pressroom.compress.numbers import number_format

    format: NumberFormat = number_format("f32")
    return Tensor(name, values.shape, format, lambda: format.encode(values.reshape(1, -1)))
