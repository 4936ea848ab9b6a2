"""Half of the weights gone: Pressroom's SparseGPT beside llm-compressor's, for `compress.py`.

Both begin with the same reference, look at the same tokens, prune each linear layer by half, and end as a GGUF file in
bf16 that llama.cpp reads the evaluation text with. llm-compressor runs in an environment of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from _compress_figures import Scored, interval, significant
from _compress_pressroom import Pressroom
from _gateway_peers import NotMeasured, Peer, environment

PACKAGES = ("llmcompressor==0.14.0.1", "torch==2.13.0")
_PEER = Peer(name="llm-compressor", environment="llm-compressor", packages=PACKAGES, health="", ways=())
_CHILD = Path(__file__).parent / "_compress_llmcompressor.py"
_WINDOW = 512
# In so many groups of layers, each calibrated behind those that are pruned; llm-compressor does it layer by layer.
_PASSES = 6
_RECIPE = f"""
name = "half"

[[step]]
method = "prune-weights"
by = "sparsegpt"
ratio = 0.5
passes = {_PASSES}
"""


def ours(pressroom: Pressroom, folder: Path, *, again: bool) -> Path:
    """The file of `press compress --recipe`."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "half.toml"
    recipe.write_text(_RECIPE, encoding="utf-8")
    return pressroom.made("half", "--recipe", str(recipe.resolve()), again=again)[0]


def theirs(
    reference: Path, text: Path, folder: Path, environments: Path, *, tokens: int, threads: int, make: bool
) -> Path:
    """The file of what llm-compressor makes. Raises NotMeasured."""
    target = folder / "llm-compressor.gguf"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    binaries = environment(_PEER, environments, make=make)
    _as_transformers(reference, folder / "model")
    np.save(folder / "tokens.npy", _windows(reference, text, tokens))
    task = {"model": str(folder / "model"), "tokens": str(folder / "tokens.npy"), "threads": threads}
    task["into"] = str(folder / "pruned.safetensors")
    print("llm-compressor's SparseGPT ...", file=sys.stderr, flush=True)
    done = subprocess.run(
        [str(binaries / "python"), str(_CHILD), json.dumps(task)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NotMeasured(f"llm-compressor ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    _as_gguf(reference, folder / "pruned.safetensors", target)
    return target


def beside(ours: Scored, theirs: Scored) -> dict[str, Any]:
    """The two perplexities, and the ratio of ours to theirs with 95 %, window by window."""
    low, high = interval((ours.loss - theirs.loss).mean(axis=1))
    figures, peer = ours.figures(), theirs.figures()
    return {
        "perplexity": figures["perplexity"],
        "llm_compressor": peer["perplexity"],
        "ratio": significant(figures["perplexity"] / peer["perplexity"]),
        "ratio_low": significant(float(np.exp(low))),
        "ratio_high": significant(float(np.exp(high))),
        "kl": figures["kl"],
        "llm_compressor_kl": peer["kl"],
        "met": figures["perplexity"] <= peer["perplexity"],
        "surely": bool(high < 0),
    }


def _windows(reference: Path, text: Path, tokens: int) -> np.ndarray[Any, Any]:
    """The tokens that Pressroom calibrates on, a row a window."""
    from pressroom.engines._llama import Llama

    model = Llama(reference, window=_WINDOW, threads=1)
    words = model.tokens(text.read_text(encoding="utf-8"))[:tokens]
    rows = words[: len(words) // _WINDOW * _WINDOW].reshape(-1, _WINDOW).copy()
    if model.bos is not None:
        rows[:, 0] = model.bos
    return rows.astype(np.int64)


def _as_transformers(reference: Path, folder: Path) -> None:
    import torch
    from _compress_reference import permuted
    from _family import _model, _renamed

    from pressroom.compress.weights import open_weights

    with open_weights(reference) as source:
        heads = int(source.value("llama.attention.head_count")), int(source.value("llama.attention.head_count_kv"))
        made = {}
        for tensor in source.tensors.values():
            values = source.rows(tensor.name).reshape(tensor.shape)
            made[_renamed(tensor.name)] = torch.from_numpy(permuted(values, tensor.name, heads, back=False).copy())
    _model(made).save_pretrained(folder)


def _as_gguf(reference: Path, pruned: Path, target: Path) -> None:
    from _compress_reference import permuted
    from _family import _renamed
    from safetensors.numpy import load_file

    from pressroom.compress.numbers import number_format
    from pressroom.compress.weights import Changed, open_weights, write

    bf16 = number_format("bf16")
    weights = load_file(pruned)
    with open_weights(reference) as source:
        heads = int(source.value("llama.attention.head_count")), int(source.value("llama.attention.head_count_kv"))
        changed = {}
        for tensor in source.linears:
            values = permuted(weights[_renamed(tensor.name)], tensor.name, heads, back=True)
            changed[tensor.name] = Changed(bf16, bf16.encode(values))
        write(target, source, changed)
