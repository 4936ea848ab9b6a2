"""vLLM: safetensors models with PagedAttention and continuous batching, on a GPU or the CPU, for many clients at once.

It lives in a virtual environment of its own, made by `press engines install vllm`, because it pins PyTorch and much
else. Options of a deployment: `dtype`, `kv_cache_gib` (memory for the keys and values of requests), `tensor_parallel`
(GPUs, or NUMA nodes, a model is spread over), `gpu_memory_utilization` (share of a GPU's memory, 0 to 1),
`max_batched_tokens` (tokens a step), `tool_parser`, `quantization`, `enforce_eager` (do not compile the model; on where
there is no GPU), and `python` (that of another environment with vLLM; default: the setting engines.vllm_python).
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import psutil

from pressroom.engines import environments
from pressroom.engines.base import Capabilities
from pressroom.engines.options import FLAG, Known, number, one_of, text, whole, wrong_option
from pressroom.engines.process import ProcessEngine
from pressroom.kernel import EngineStartError, Workspace, this_machine

_SERVER = Path(__file__).parent.parent / "_vllm_server.py"
_DEFAULT_CONTEXT = 8192
_SMALL_MACHINE = 8
# Tokens are kept in blocks, on the CPU of this many.
_BLOCK = 128
# What equal prefixes are remembered in, however short the context is; and what nobody asked for is not taken.
_LEAST_KV = 256 << 20
_MOST_KV = 4 << 30
_KV_SHARE = 4
_DTYPES = ("auto", "bfloat16", "float16", "float32", "half", "float")
# A safetensors file begins with the length of its header; one of 100 MB is the most the format allows.
_HEADER_LIMIT = 100_000_000

_ANY_PARSER = "hermes"
# How the calls of a model look, by what its chat template says of them; the first that fits.
_PARSERS = (
    ("[TOOL_CALLS]", "mistral"),
    ("<|python_tag|>", "llama3_json"),
    ("<function=", "qwen3_xml"),
    ("<tool_call>", "hermes"),
)

# The line that matters among many, as vLLM and PyTorch word it: the first pattern that is found, where it is last.
_CAUSES = tuple(
    re.compile(pattern)
    for pattern in (
        r"(CUDA out of memory\. Tried to allocate [\d.]+ \w+)",
        r"(DefaultCPUAllocator: can't allocate memory[^\n]*)",
        r"(Free memory on device .+?GiB\)) on startup (is less than[^(]*\([^)]*\))",
        r"(Available memory on node .+?GiB\)[^(\n]*\([^)]*\))",
        r"(To serve at least one request with the models?'s max seq len \([^)]*\), \([^)]*\))",
        r"(No available memory for the cache blocks)",
        r"(User-specified max_model_len \(\d+\) is greater than the derived max_model_len \([^)]*\))",
        r"(Model architectures .+? are not supported for now)",
        r"(Unknown quantization method: [^.]*)",
        r"(The model type .+ does not support float16[^\n]*)",
        r"((?:Error while deserializing header|MetadataIncompleteBuffer|InvalidHeader)[^\n]*)",
        r"error: (argument .+)",
        r"(No space left on device)",
        r"Value error, (.+?)(?: \[type=|\n|$)",
        r"\b(?:[A-Z]\w*Error|KeyError): (?!Engine core init|Worker failed|\d+ validation error)(.+)",
    )
)
_CAUSE_LENGTH = 400


_OPTIONS: Known = {
    "dtype": one_of(_DTYPES),
    "kv_cache_gib": number("a number above 0", lambda value: value > 0),
    "tensor_parallel": whole(1),
    "gpu_memory_utilization": number("a number above 0, at most 1", lambda value: 0 < value <= 1),
    "max_batched_tokens": whole(1),
    "tool_parser": text("the name of a parser"),
    "quantization": text("the name of a method"),
    "enforce_eager": FLAG,
    "python": text("the path of a Python"),
}


class Backend(ProcessEngine):
    """One vLLM server, with the processes it starts."""

    capabilities = Capabilities(logprobs=True, json_schema=True, tools=True, several=True)
    formats = ("safetensors",)
    default_slots = 64
    options = _OPTIONS
    rank = 20

    @classmethod
    def unusable(cls, workspace: Workspace) -> str:
        return environments.look(environments.vllm_python(workspace)).trouble

    @classmethod
    def defaults(cls, workspace: Workspace) -> dict[str, Any]:
        return {"python": str(environments.vllm_python(workspace))}

    def command(self) -> list[str]:
        self._check()
        given = self.spec.options.get("python") or str(environments.default_python())
        python = Path(given).absolute()
        if not os.access(python, os.X_OK):
            raise self._refused(
                f"there is no environment with vLLM: {python} is not there",
                "Make one with: press engines install vllm",
            )
        # -I: neither variables nor folders of this environment may reach into that one.
        return [str(python), "-I", str(_SERVER)]

    def child_spec(self) -> dict[str, Any]:
        options = {name: value for name, value in self.spec.options.items() if name != "python"}
        config = self._config()
        template = _chat_template(self.spec.model)
        slots = self.spec.slots or self.default_slots
        trained = trained_context(config)
        # Where it is below the most that we give, vLLM finds the model's own: other files may say less than this one.
        context = self.spec.context or (_DEFAULT_CONTEXT if trained and trained > _DEFAULT_CONTEXT else 0)
        sized = context or min(trained or _DEFAULT_CONTEXT, _DEFAULT_CONTEXT)
        parser = options.get("tool_parser") or _tool_parser(template)
        asked = options.get("kv_cache_gib")
        given = int(asked * 2**30) if asked else kv_cache_bytes(config, context=sized, slots=slots)
        return {
            **super().child_spec(),
            "context": context,
            "slots": slots,
            "threads": self.spec.threads or _threads(int(options.get("tensor_parallel", 1))),
            "options": options,
            "kv_cache_bytes": given,
            "chat": bool(template),
            "tools": bool(parser),
            # A call that is demanded is held to its form, and so can be had of every model that chats.
            "tool_parser": parser or (_ANY_PARSER if template else None),
        }

    def cause(self, lines: list[str]) -> str:
        # The lines of the processes that vLLM starts come before those of its own, which only say that one failed.
        found = "\n".join(self._log.tail(1000) if self._log is not None else lines)
        for pattern in _CAUSES:
            matches = list(pattern.finditer(found))
            if matches:
                return " ".join(" ".join(matches[-1].groups()).split())[:_CAUSE_LENGTH]
        return ""

    def _config(self) -> dict[str, Any]:
        """The model's `config.json`. Loading vLLM takes the better part of a minute: what is wrong with the folder is
        said before."""
        model = self.spec.model
        if model is None:
            raise self._refused("vLLM needs a model and got none", "Deploy a version whose format is safetensors.")
        if not model.is_dir():
            raise self._refused(
                f"{model} is not a folder with a model", "Deploy a version whose format is safetensors."
            )
        try:
            config = json.loads((model / "config.json").read_bytes())
        except (OSError, ValueError) as error:
            raise self._refused(f"its config.json cannot be read: {error}", "Pull the model again.") from error
        if not isinstance(config, dict) or not config.get("architectures"):
            raise self._refused("its config.json names no architecture", "vLLM needs a model as transformers saves it.")
        weights = sorted(model.glob("*.safetensors"))
        if not weights:
            raise self._refused("its folder has no .safetensors file", "vLLM needs a model as transformers saves it.")
        for path in weights:
            trouble = _header_trouble(path)
            if trouble:
                raise self._refused(f"{path.name} is damaged: {trouble}", "Pull the model again.")
        return config

    def _check(self) -> None:
        wrong = wrong_option("vllm", self.spec.options, _OPTIONS)
        if wrong is not None:
            raise self._refused(*wrong)

    def _refused(self, reason: str, hint: str) -> EngineStartError:
        # `reported`: it will be no different the next time, so nobody needs to try often.
        return EngineStartError(
            f"the engine for {self.spec.name!r} did not start: {reason}",
            hint=hint,
            reason=reason,
            lines=[],
            reported=True,
        )


def _threads(workers: int) -> int:
    """Threads on the CPU where nobody said: all cores of a small machine; 0 on a larger one, where vLLM binds them by
    NUMA node and keeps a core for its scheduler. Of two, that would leave one."""
    cores = this_machine().physical_cores
    return cores if workers == 1 and cores <= _SMALL_MACHINE else 0


def trained_context(config: dict[str, Any]) -> int | None:
    """Tokens of context the model was made for, by its `config.json`; None where that does not say."""
    inner = _inner(config)
    length = inner.get("max_position_embeddings")
    if not isinstance(length, int) or length <= 0:
        return None
    scaling = inner.get("rope_parameters") or inner.get("rope_scaling") or {}
    factor = scaling.get("factor") if isinstance(scaling, dict) else None
    kind = str(scaling.get("rope_type") or scaling.get("type") or "") if isinstance(scaling, dict) else ""
    if isinstance(factor, (int, float)) and factor > 1 and kind in ("linear", "dynamic", "yarn"):
        original = scaling.get("original_max_position_embeddings") or length
        return max(length, int(original * factor))
    return length


def kv_cache_bytes(config: dict[str, Any], *, context: int, slots: int) -> int:
    """Bytes for keys and values on the CPU where nobody said: all slots at full context, but at most 4 GiB or a quarter
    of the free memory, and at least one full context. Requests beyond it wait, or are begun again."""
    inner = _inner(config)
    heads = int(inner.get("num_attention_heads") or 1)
    size = int(inner.get("head_dim") or int(inner.get("hidden_size") or 1) // heads)
    kept = int(inner.get("num_key_value_heads") or heads)
    width = 4 if str(inner.get("dtype") or inner.get("torch_dtype")) == "float32" else 2
    block = 2 * int(inner.get("num_hidden_layers") or 1) * kept * size * width * _BLOCK
    blocks = -(-context // _BLOCK) + 1
    most = min(_MOST_KV, psutil.virtual_memory().available // _KV_SHARE)
    # One block more: vLLM keeps one for itself.
    return max(min(blocks * slots * block, most), (blocks + 1) * block, min(_LEAST_KV, most))


def _inner(config: dict[str, Any]) -> dict[str, Any]:
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def _header_trouble(path: Path) -> str:
    """What is wrong with the header of a safetensors file; '' where nothing is."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_HEADER_LIMIT, path.stat().st_size - 8):
                return "its header does not end within the file"
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        missing = 8 + length + max(ends, default=0) - path.stat().st_size
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        return f"its header cannot be read ({type(error).__name__})"
    return f"{missing} bytes are missing at its end" if missing > 0 else ""


def _chat_template(model: Path | None) -> str:
    assert model is not None, "checked before"
    try:
        return (model / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, ValueError):
        pass
    for name in ("chat_template.json", "tokenizer_config.json"):
        try:
            found = json.loads((model / name).read_bytes()).get("chat_template")
        except (OSError, ValueError, AttributeError):
            continue
        if found:
            return found if isinstance(found, str) else json.dumps(found)
    return ""


def _tool_parser(template: str) -> str | None:
    """The parser for the calls of a model, or None where its template does not know tools: it would never see them."""
    if not re.search(r"\btools\b", template):
        return None
    return next((parser for sign, parser in _PARSERS if sign in template), _ANY_PARSER)
