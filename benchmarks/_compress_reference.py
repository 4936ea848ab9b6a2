"""The model that `compress.py` compresses: SmolLM2-135M in bf16, as if it had never been on a grid of four bits.

The package that has it has its weights in 4 bits (Q4_1), and its embedding in 8. Rounded to such a grid again they
would lose less than another model's. So each weight is put anywhere inside its own cell (uniformly, seeded), and a few
steps of AdamW on text that is used for nothing else heal what that breaks. Norms stay. The result is a GGUF file, bf16
where the source has a grid.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _family import _model, _renamed, tokens
from numpy.typing import NDArray

from pressroom.compress.numbers import number_format
from pressroom.compress.weights import Changed, Tensor, Weights, open_weights, write

STEPS, _TOKENS, _RATE = 48, 1024, 5e-5
_SEED = 20261122
_Q4_1, _Q8_0 = 3, 8  # ggml's numbers of the types


def reference(gguf: Path, text: Path, target: Path, *, steps: int = STEPS) -> Path:
    """The model at `target`, made from the GGUF file and healed on the text where it is not there."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    with open_weights(gguf) as source:
        heads = int(source.value("llama.attention.head_count")), int(source.value("llama.attention.head_count_kv"))
        random = np.random.default_rng(_SEED)
        made = {
            tensor.name: torch.from_numpy(permuted(dithered(source, tensor, random), tensor.name, heads, back=False))
            for tensor in source.tensors.values()
        }
        model = _model({_renamed(name): values for name, values in made.items()})
        heal(model, tokens(gguf, text, known=made["token_embd.weight"].shape[0]), steps=steps)
        state = model.state_dict()
        bf16 = number_format("bf16")
        changed = {}
        for tensor in source.tensors.values():
            if len(tensor.shape) == 2:
                values = permuted(state[_renamed(tensor.name)].float().numpy(), tensor.name, heads, back=True)
                changed[tensor.name] = Changed(bf16, bf16.encode(values))
        write(target, source, changed, metadata={"general.name": "SmolLM2 135M, off the grid"})
    return target


def dithered(source: Weights, tensor: Tensor, random: np.random.Generator) -> NDArray[np.float32]:
    """The weights, each anywhere within half a step of its grid; those that are on none as they are."""
    values = source.rows(tensor.name).reshape(tensor.shape)
    if tensor.number not in (_Q4_1, _Q8_0):
        return values.copy()
    block = 20 if tensor.number == _Q4_1 else 34
    raw = np.frombuffer(source.raw(tensor.name), np.uint8).reshape(-1, block)
    steps = np.abs(raw[:, :2].copy().view("<f2").astype(np.float32))
    noise = random.uniform(-0.5, 0.5, (len(steps), 32)).astype(np.float32)
    return values + (noise * steps).reshape(tensor.shape)


def permuted(values: NDArray[np.float32], name: str, heads: tuple[int, int], *, back: bool) -> NDArray[np.float32]:
    """Rows of q and k as transformers has them: the two halves of a head that rotate together lie apart, and in GGUF
    files (`back`) side by side."""
    if not name.endswith(("attn_q.weight", "attn_k.weight")):
        return values
    count = heads[0] if "attn_q" in name else heads[1]
    half = len(values) // count // 2
    shape = (count, 2, half, -1) if back else (count, half, 2, -1)
    return np.ascontiguousarray(values.reshape(shape).swapaxes(1, 2).reshape(values.shape))


def heal(model: Any, words: torch.Tensor, *, steps: int) -> None:
    """AdamW on the text, a passage a step; norms stay as they are."""
    trained = [one for one in model.parameters() if one.dim() == 2]
    optimizer = torch.optim.AdamW(trained, lr=_RATE, weight_decay=0.0)
    for step in range(steps):
        passage = words[step * _TOKENS :][:_TOKENS][None]
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=passage, labels=passage).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        print(f"healing: step {step + 1} of {steps}, loss {loss.item():.3f}", file=sys.stderr, flush=True)
