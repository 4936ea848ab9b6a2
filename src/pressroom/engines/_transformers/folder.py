"""What a folder of weights is, read from its small files before anything heavy is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pressroom.engines import child

_MOST_JSON = 64 << 20
_CONTEXTS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")
_PULL = "Pull the model again, or deploy a version whose format is safetensors."
# RoBERTa's kind numbers positions from pad_token_id + 1: two of its positions are never used.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert", "mpnet", "xlm-roberta-xl", "longformer")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pooling:
    """How the vectors of the tokens become one: `mean`, `cls`, `max` or `last`; `normal`: then of length 1."""

    mode: str = "mean"
    normal: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFolder:
    """`trained` is the longest input the model knows positions for (None: not said), `usual` how long one the folder
    says is for it (0: not said); `pooling` is set where it is a model of embeddings."""

    path: Path
    config: dict[str, Any]
    architecture: str
    trained: int | None
    usual: int
    pooling: Pooling | None


def find(name: str, given: str | None) -> Path:
    """The folder, looked at from outside; ends the process with a report where it holds nothing this engine loads."""
    if not given:
        child.failed("transformers needs a model and got none", hint="Deploy a version whose format is safetensors.")
    path = Path(given)
    if not path.exists():
        child.failed(f"there is nothing at {path}", hint="Pull the model again.")
    if not path.is_dir():
        child.failed(
            f"the model of {name!r} is the file {path.name}, and transformers needs a folder",
            hint="It needs config.json and a tokenizer beside the safetensors files; pull the whole repository.",
        )
    if not any(path.glob("*.safetensors")):
        pickles = sorted(found.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for found in path.glob(kind))
        held = f"only {', '.join(pickles[:3])}" if pickles else "no weights"
        child.failed(
            f"the folder of {name!r} holds {held}, and transformers here loads safetensors only",
            hint="Pickled weights can run code when they are read; convert them to safetensors." if pickles else _PULL,
        )
    _json(path / "config.json")
    return path


def read(path: Path) -> ModelFolder:
    """What is in it; ends the process with a report where that is none this engine can run. Loads transformers."""
    config = _json(path / "config.json")
    architectures = config.get("architectures") or [""]
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    return ModelFolder(
        path=path,
        config=config,
        architecture=architecture,
        trained=_trained(config),
        usual=_usual(path),
        pooling=_pooling(path, config, architecture),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_JSON:
            raise ValueError("it is too large to be one")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is not an object")
    except FileNotFoundError:
        child.failed(f"the folder has no {path.name}", hint=_PULL)
    except (OSError, ValueError) as error:
        child.failed(f"{path.name} cannot be read: {error}", hint=_PULL)
    return found


def _trained(config: dict[str, Any]) -> int | None:
    for values in (config, config.get("text_config")):
        for key in _CONTEXTS if isinstance(values, dict) else ():
            value = values.get(key) if isinstance(values, dict) else None
            if type(value) is int and value > 0:
                return value - 2 if config.get("model_type") in _OFFSET_POSITIONS else value
    return None


def _usual(path: Path) -> int:
    found = path / "sentence_bert_config.json"
    value = _json(found).get("max_seq_length") if found.is_file() else None
    return value if type(value) is int and value > 0 else 0


def _pooling(path: Path, config: dict[str, Any], architecture: str) -> Pooling | None:
    """Set where the folder is a sentence encoder, or an encoder with no head for text."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    described = path / "1_Pooling" / "config.json"
    if not described.is_file():
        if architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
            return None
        if architecture.endswith(("Model", "ForMaskedLM", "ForPreTraining")) and not config.get("is_encoder_decoder"):
            return Pooling()
        child.failed(
            f"{architecture or 'a model of no named architecture'} is neither a causal language model nor an encoder",
            hint="This engine answers chat, completions and embeddings.",
        )
    modes = _json(described)
    asked = {key.removeprefix("pooling_mode_") for key, on in modes.items() if key.startswith("pooling_mode_") and on}
    known = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max", "lasttoken": "last"}
    if len(asked) != 1 or not asked <= set(known):
        child.failed(
            f"1_Pooling/config.json asks for {', '.join(sorted(asked)) or 'no pooling'}",
            hint=f"This engine does one of: {', '.join(known)}.",
        )
    return Pooling(mode=known[asked.pop()], normal=_modules(path))


def _modules(path: Path) -> bool:
    """Whether the last module makes vectors of length 1; ends the process where there is one that is not known."""
    found = path / "modules.json"
    if not found.is_file():
        return True
    try:
        kinds = [str(module["type"]).rpartition(".")[2] for module in json.loads(found.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, KeyError) as error:
        child.failed(f"modules.json cannot be read: {error!r}", hint=_PULL)
    other = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    if other:
        child.failed(
            f"the sentence encoder has the module {other[0]}, which this engine does not run",
            hint="It runs Transformer, Pooling and Normalize.",
        )
    return "Normalize" in kinds
