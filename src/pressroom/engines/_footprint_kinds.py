"""What each kind of engine takes for a model of a given shape. The constants were measured: see docs/memory.md."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pressroom.engines._footprint_shape import Shape, padded

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Parts:
    """Bytes of an estimate: `later` is how much of the rest is only taken as requests come. `how` says, in phrases."""

    weights: int
    kv_cache: int
    overhead: int
    later: int
    how: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """Tokens a request and requests at once, as the engine will have them; the engine's own options."""

    context: int
    slots: int
    options: Mapping[str, Any]

    def number(self, name: str, default: float) -> float:
        value = self.options.get(name, default)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else default


# --- llama.cpp ------------------------------------------------------------

# The process with Python, the library, its threads and the HTTP server.
_LLAMA_BASE = 46 * MIB
# Its tables of the vocabulary, a token: text, score, two maps and the merges (25 MB for 49,152 tokens).
_LLAMA_TOKEN = 560
# What sampling holds of a token of the vocabulary, a slot: the logits, and a candidate with its index and probability.
_LLAMA_CANDIDATE = 16
_LLAMA_UBATCH = 512
_LLAMA_CACHE_MIB = 512
# It makes room for whole multiples of this many tokens a slot.
_LLAMA_CELLS = 256
# A slot of a model with windows keeps copies of them to go back to, one in this many tokens and 32 at most.
_LLAMA_CHECKPOINT_TOKENS = 8192
_LLAMA_CHECKPOINTS = 32
# ggml rearranges matrices of these types for the processor into memory of its own, beside the mapped file.
_REPACKED = (
    frozenset(("Q4_0", "Q4_K", "Q2_K", "IQ4_NL", "MXFP4"))
    if platform.machine().lower() in ("x86_64", "amd64")
    else frozenset(("Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL", "MXFP4"))
)


def llamacpp(shape: Shape, asked: Asked) -> Parts:
    """Everything but the prompt cache is there from the start: llama.cpp fills its KV cache with zeros."""
    cells = padded(asked.context, _LLAMA_CELLS)
    ubatch = min(int(asked.number("ubatch", _LLAMA_UBATCH)), cells)
    text = 2 * shape.numbers(cells, spare=ubatch, multiple=_LLAMA_CELLS) + shape.state
    kv = text * asked.slots
    repacked = sum(
        tensor.nbytes for tensor in shape.info.tensors if tensor.dtype in _REPACKED and len(tensor.shape) > 1
    )
    steps = ubatch * (4 * shape.widest + 6 * cells) + _LLAMA_CANDIDATE * shape.vocabulary * asked.slots
    cache = asked.number("cache_ram_mib", _LLAMA_CACHE_MIB)
    # At least one prompt is kept where any is; without a limit in bytes it is as many tokens as all slots have.
    prompts = 0 if cache == 0 else kv if cache < 0 else max(int(cache * MIB), text)
    windows = 2 * sum(layer.window * (layer.keys + layer.values) for layer in shape.windowed) + shape.state
    copies = min(_LLAMA_CHECKPOINTS, asked.context // _LLAMA_CHECKPOINT_TOKENS + 2) * asked.slots if windows else 0
    how = [f"{_mb(shape.weights)} of weights, mapped"]
    if repacked:
        how.append(f"{_mb(repacked)} of them a second time, rearranged for the processor")
    how.append(_kv_words(shape, asked, 2, "F16"))
    how.append(f"{_mb(steps)} to compute {ubatch} tokens a step")
    how.append(f"{_mb(_LLAMA_BASE + _LLAMA_TOKEN * shape.vocabulary)} for the process and its vocabulary")
    if prompts:
        how.append(f"up to {_mb(prompts)} for prompts that may come again")
    if copies:
        how.append(f"up to {_mb(copies * windows)} for {copies} copies of windows and states")
    if asked.options.get("gpu_layers"):
        how.append("what goes to the GPU is counted here as well: the file stays mapped")
    later = prompts + copies * windows
    overhead = _LLAMA_BASE + _LLAMA_TOKEN * shape.vocabulary + steps + later
    return Parts(shape.weights + repacked, kv, overhead, later, tuple(how))


def _kv_words(shape: Shape, asked: Asked, width: int, called: str, *, expanded: bool = False) -> str:
    token = width * shape.numbers(1, expanded=expanded)
    kept = sum(1 for layer in shape.layers if layer.keys)
    words = f"{kept} of {len(shape.layers)}" if kept != len(shape.layers) else str(kept)
    text = f"{words} layers keep {token:,} B of a token in {called}, for {asked.slots} × {asked.context:,} tokens"
    if shape.windowed:
        widest = max(layer.window for layer in shape.windowed)
        text += f"; {len(shape.windowed)} of them the last {widest:,} only"
    return text


def _mb(count: float) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"


# --- engines on PyTorch ------------------------------------------------------------

# One Python process with torch, transformers, a tokenizer and the server, before any weights.
_TRANSFORMERS_BASE = 440 * MIB
# What its tokenizer keeps of a token.
_TRANSFORMERS_TOKEN = 600
_TRANSFORMERS_CACHE_MIB = 256
# Tokens that are read in one step, of all prompts together and of one, and how much larger the batch is made than it
# must be.
_TRANSFORMERS_STEP = 2048
_TRANSFORMERS_PIECE = 512
_TRANSFORMERS_SPARE = 1.5
# vLLM's two processes (the server and its core) with PyTorch each, and what it compiles and warms up.
_VLLM_BASE = 2500 * MIB
_VLLM_STEP = 2048
_WIDTHS = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}


def transformers(shape: Shape, asked: Asked) -> Parts:
    """Its KV cache grows with the texts, up to all slots at full length."""
    dtype = str(asked.options.get("dtype", "auto"))
    width = _WIDTHS.get(dtype, _stored_width(shape))
    weights = sum(tensor.elements for tensor in shape.info.tensors) * width if dtype in _WIDTHS else shape.weights
    text = width * shape.numbers(asked.context, expanded=True) + shape.state
    reading = width * shape.numbers(
        max(asked.context, min(_TRANSFORMERS_STEP, asked.context * asked.slots)), expanded=True
    )
    # The batch, and beside it the prompts that are being read: as they grow, and two copies on the way into it.
    kv = int(_TRANSFORMERS_SPARE * text * asked.slots) + 3 * reading
    prompts = int(asked.number("cache_mib", _TRANSFORMERS_CACHE_MIB) * MIB) if shape.layers else 0
    scores = _TRANSFORMERS_PIECE * asked.context * shape.heads * 4
    steps = _TRANSFORMERS_STEP * width * shape.widest + scores + (width + 8) * shape.vocabulary * asked.slots
    base = _TRANSFORMERS_BASE + _TRANSFORMERS_TOKEN * shape.vocabulary
    how = [f"{_mb(weights)} of weights"]
    if kv:
        how.append(_kv_words(shape, asked, width, "F32" if width == 4 else "16 bits", expanded=True))
        how.append("half as much again for room to grow, and the prompts that are being read")
    how.append(f"{_mb(steps)} to compute")
    how.append(f"{_mb(base)} for the process with PyTorch and its vocabulary")
    if prompts:
        how.append(f"up to {_mb(prompts)} for prompts that may come again")
    return Parts(weights, kv, base + steps + prompts, kv + prompts, tuple(how))


def vllm(shape: Shape, asked: Asked) -> Parts:
    """Its KV cache is one pool, of which pages are taken as they are first used."""
    given = asked.number("kv_cache_gib", 0)
    if given:
        pool, why = int(given * GIB), "as asked for"
    else:
        # What the backend itself would take: it looks at the free memory as well.
        from pressroom.engines.backends.vllm import kv_cache_bytes

        pool, why = kv_cache_bytes(dict(shape.config), context=asked.context, slots=asked.slots), "for these slots"
    steps = int(asked.number("max_batched_tokens", _VLLM_STEP)) * 4 * shape.widest + 8 * shape.vocabulary * asked.slots
    how = (
        f"{_mb(shape.weights)} of weights",
        f"a pool of {_mb(pool)} for keys and values, {why}",
        f"{_mb(steps)} to compute",
        f"{_mb(_VLLM_BASE)} for vLLM's processes",
    )
    return Parts(shape.weights, pool, _VLLM_BASE + steps, pool, how)


def _stored_width(shape: Shape) -> int:
    return 4 if shape.info.quantization in ("F32", "F64") else 2


def unknown(shape: Shape, asked: Asked) -> Parts:
    """An engine that is not known here: everything in full, in the processes of the hungriest one that is known."""
    kv = (2 * shape.numbers(asked.context, expanded=True) + shape.state) * asked.slots
    steps = 2048 * 4 * shape.widest + 8 * shape.vocabulary * asked.slots
    how = (
        "an engine whose needs are not known: taken as large as vLLM without its pool",
        f"{_mb(shape.weights)} of weights",
        _kv_words(shape, asked, 2, "16 bits", expanded=True),
    )
    return Parts(shape.weights, kv, _VLLM_BASE + steps, kv, how)


# --- engines without weights ------------------------------------------------------------

_WEIGHTLESS = {"echo": 36 * MIB, "vendor": 56 * MIB}


def weightless(engine: str) -> Parts:
    """An engine that computes nothing: its process."""
    size = _WEIGHTLESS.get(engine, _TRANSFORMERS_BASE)
    return Parts(0, 0, size, 0, (f"{_mb(size)} for the process",))


KINDS: dict[str, Callable[[Shape, Asked], Parts]] = {
    "llamacpp": llamacpp,
    "transformers": transformers,
    "vllm": vllm,
}
