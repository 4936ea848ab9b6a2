"""From a folder to a model that is ready to answer. Loads torch and transformers; nothing here uses the network."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pressroom.engines import child
from pressroom.engines._transformers import grammar
from pressroom.engines._transformers.asked import Served
from pressroom.engines._transformers.chat import Template
from pressroom.engines._transformers.embedding import Encoder
from pressroom.engines._transformers.folder import ModelFolder
from pressroom.engines._transformers.options import Options
from pressroom.engines._transformers.rows import Model
from pressroom.engines._transformers.vocabulary import Vocabulary
from pressroom.kernel import this_machine

_log = logging.getLogger(__name__)

_DEFAULT_CONTEXT = 8192
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
# What the library raises about files that are not what they should be: it has no error of its own.
_LOADING = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RuntimeError,
    ImportError,
    LookupError,
    AssertionError,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A model of text (`served` and `model`) or of embeddings (`encoder`), and the context a request gets."""

    context: int
    device: torch.device
    dtype: str
    served: Served | None = None
    model: Model | None = None
    encoder: Encoder | None = None


def load(spec: dict[str, Any], folder: ModelFolder, options: Options) -> Loaded:
    """The model of the folder; ends the process with a report where it cannot be loaded."""
    quiet: Any = transformers.utils.logging
    quiet.disable_progress_bar()
    torch.set_num_threads(int(spec["threads"]) or this_machine().physical_cores)
    device = _device(options.device)
    context = _context(int(spec["context"]), folder)
    model = _weights(spec["name"], folder, options, device)
    vocabulary = _vocabulary(spec["name"], folder, model)
    dtype = str(model.dtype).removeprefix("torch.")
    if folder.pooling is not None:
        encoder = Encoder(model, vocabulary, folder.pooling, context, device)
        return Loaded(context=context, device=device, dtype=dtype, encoder=encoder)
    ends, usual = _generation(folder, model, vocabulary)
    served = Served(
        name=spec["name"],
        vocabulary=vocabulary,
        context=context,
        ends=ends,
        usual=usual,
        template=Template(vocabulary) if vocabulary.tokenizer.chat_template else None,
        grammars=_grammars(vocabulary, ends),
    )
    return Loaded(context=context, device=device, dtype=dtype, served=served, model=Model(model, device))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        found = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        reason = str(error).partition("\n")[0][:200]
        child.failed(f"the device {name!r} cannot be used: {reason}", hint=f"There are: {', '.join(['cpu', *found])}.")
    return device


def _context(asked: int, folder: ModelFolder) -> int:
    if folder.trained and asked > folder.trained:
        child.failed(
            f"a context of {asked} tokens was asked for, and the model was trained with {folder.trained}",
            hint=f"Ask for at most {folder.trained}.",
        )
    trained = folder.trained or _DEFAULT_CONTEXT
    return asked or min(folder.usual or _DEFAULT_CONTEXT, trained)


def _weights(name: str, folder: ModelFolder, options: Options, device: torch.device) -> Any:
    kind: Any = AutoModelForCausalLM if folder.pooling is None else AutoModel
    more: dict[str, Any] = {} if options.attn == "auto" else {"attn_implementation": options.attn}
    try:
        model, report = kind.from_pretrained(
            folder.path,
            dtype=options.dtype if options.dtype == "auto" else getattr(torch, options.dtype),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **more,
        )
    except _LOADING as error:
        child.failed(
            f"transformers cannot load the model of {name!r}: {_first_line(error)}",
            hint="A newer architecture needs a newer transformers (`pip install --upgrade transformers`); else pull "
            "the model again.",
        )
    # What is missing would be filled with random numbers, and the model would talk nonsense.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing or report["mismatched_keys"]:
        what = ", ".join(missing[:3]) or str(next(iter(report["mismatched_keys"])))
        child.failed(
            f"the weights of {name!r} are not whole: tensors are missing or of another shape, such as {what}",
            hint="Pull the model again.",
        )
    try:
        model = model.to(device).eval()
    except (RuntimeError, NotImplementedError) as error:
        child.failed(
            f"the model of {name!r} does not fit onto {device}: {_first_line(error)}",
            hint="Take a smaller model or dtype, or `--option device=cpu`.",
        )
    return model


def _vocabulary(name: str, folder: ModelFolder, model: Any) -> Vocabulary:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
        return Vocabulary(tokenizer, _rows(model))
    except _LOADING as error:
        child.failed(
            f"the tokenizer of {name!r} cannot be loaded: {_first_line(error)}",
            hint="The folder needs tokenizer.json; pull the whole repository again.",
        )


def _rows(model: Any) -> int:
    head = model.get_output_embeddings()
    rows = (head if head is not None else model.get_input_embeddings()).weight.shape[0]
    return int(min(rows, model.get_input_embeddings().weight.shape[0]))


def _generation(folder: ModelFolder, model: Any, vocabulary: Vocabulary) -> tuple[tuple[int, ...], dict[str, float]]:
    """Tokens that end an answer, and what the makers of the model sample with."""
    config: GenerationConfig | None = getattr(model, "generation_config", None)
    ends: set[int] = set()
    for source in (config, model.config.get_text_config(), vocabulary.tokenizer):
        found = getattr(source, "eos_token_id", None)
        ends.update(found if isinstance(found, list) else [found] if isinstance(found, int) else [])
    try:
        said = json.loads((folder.path / "generation_config.json").read_text(encoding="utf-8"))
        usual = {name: float(said[name]) for name in _SAMPLING if said.get(name) is not None}
        if said.get("do_sample") is False:
            usual["temperature"] = 0.0
    except (OSError, ValueError, TypeError, AttributeError):
        usual = {}  # without the file OpenAI's defaults are taken
    return tuple(sorted(end for end in ends if 0 <= end < vocabulary.size)), usual


def _grammars(vocabulary: Vocabulary, ends: tuple[int, ...]) -> grammar.Grammars | None:
    if not grammar.installed():
        return None
    try:
        return grammar.Grammars(vocabulary.tokenizer, vocabulary.size, ends)
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        _log.warning("answers cannot be held to a format: llguidance does not read this tokenizer: %s", error)
        return None


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.partition("\n")[0][:300] if text else type(error).__name__
