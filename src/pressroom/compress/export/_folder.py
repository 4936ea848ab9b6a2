"""A GGUF file as a folder that transformers loads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressroom.compress.export import _safetensors, _tokenizer_files
from pressroom.compress.export._safetensors import Entry
from pressroom.compress.models import names
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pressroom.compress.weights import Weights

#: The types that weights can be written in, with the names that safetensors and PyTorch have for them.
DTYPES = {"bf16": ("BF16", "bfloat16"), "f16": ("F16", "float16"), "f32": ("F32", "float32")}
_MOST_F16 = 65504.0


def config_of(source: Weights, dtype: str) -> dict[str, Any]:
    """config.json of the file's model, all checks made that need no weights.

    Raises:
        RecipeError: the architecture or the tokenizer cannot be carried over, or there is no such type.
    """
    if dtype not in DTYPES:
        raise RecipeError(
            f"weights cannot be written as {dtype!r}", hint=f"Take one of {', '.join(DTYPES)}.", asked=dtype
        )
    freqs = source.rows(names.ROPE_FREQS).reshape(-1) if names.ROPE_FREQS in source.tensors else None
    config = names.config_from(source.value, {name: one.shape for name, one in source.tensors.items()}, freqs=freqs)
    _tokenizer_files.check(source.value)
    tokens = len(source.value("tokenizer.ggml.tokens", []))
    if tokens != config["vocab_size"]:
        raise RecipeError(
            f"the tokenizer has {tokens:,} tokens and the embedding {config['vocab_size']:,}",
            hint="Take a file that is whole.",
        )
    return {**config, "dtype": DTYPES[dtype][1], "torch_dtype": DTYPES[dtype][1]}


def matrix(source: Weights, config: Mapping[str, Any], name: str) -> NDArray[np.float32]:
    """A tensor of the file in the order that transformers has. Raises RecipeError where it is not of numbers."""
    rows = source.rows(name).reshape(source.tensor(name).shape)
    architecture = names.of_gguf(source.architecture)
    return names.split_halves(rows, names.heads_of(name, architecture, config))


def entries(
    source: Weights, config: Mapping[str, Any], dtype: str, left: Mapping[str, Any] | None = None
) -> list[Entry]:
    """The tensors to write, but for those that `left` names."""
    found = []
    for name, tensor in source.tensors.items():
        theirs = names.to_hf(name)
        if theirs is None or (left is not None and name in left):
            continue
        found.append(Entry(theirs, DTYPES[dtype][0], tensor.shape, _maker(source, config, name, dtype)))
    return found


def write_folder(
    source: Weights, folder: Path, *, dtype: str = "bf16", progress: Callable[[int, int], None] | None = None
) -> int:
    """Write the model into an empty folder, with its tokenizer; returns the bytes of its weights.

    Raises:
        RecipeError: see `config_of`; or a weight is too large for the type.
        StoreFullError, StoreError: the disk is full, or cannot be written.
        MissingDependencyError: a library is missing that an extra installs.
    """
    config = config_of(source, dtype)
    size = _safetensors.write(folder / "model.safetensors", entries(source, config, dtype), progress=progress)
    write_settings(source, folder, config)
    return size


def write_settings(source: Weights, folder: Path, config: Mapping[str, Any]) -> None:
    """Write the tokenizer's files and config.json, which the folder is whole with."""
    ids = _tokenizer_files.write(source.value, folder, context=config["max_position_embeddings"])
    text = json.dumps({**config, **ids}, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _maker(source: Weights, config: Mapping[str, Any], name: str, dtype: str) -> Callable[[], NDArray[Any]]:
    def made() -> NDArray[Any]:
        return as_type(matrix(source, config, name), dtype, name)

    return made


def as_type(values: NDArray[np.float32], dtype: str, name: str) -> NDArray[np.uint8]:
    """The bytes of numbers in a type. Raises RecipeError where one is not finite or does not fit."""
    import numpy as np

    from pressroom.compress.numbers import number_format

    most = float(np.abs(values).max(initial=0.0))
    if not most <= (_MOST_F16 if dtype == "f16" else float(np.finfo(np.float32).max)):
        what = "is not finite" if not np.isfinite(most) else f"reaches {most:,.0f}, and f16 ends at {_MOST_F16:,.0f}"
        raise RecipeError(f"the tensor {name} {what}", hint="Take bf16 or f32, or a sound file.", tensor=name)
    return number_format(dtype).encode(values.reshape(1, -1) if values.ndim < 2 else values)
