"""A folder as Hugging Face lays it out: `config.json`, safetensors whole or in shards with an index, a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pressroom.kernel.errors import MalformedWeightsError
from pressroom.store._opening import open_regular, unreadable
from pressroom.store.formats._inspect import inspect, unsafe
from pressroom.store.formats._json import parsed_object
from pressroom.store.formats._naming import Named, dominant, plain, shares, storable
from pressroom.store.formats._sniff import sniff
from pressroom.store.formats.base import TensorInfo, WeightsInfo

_INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
# An index has a line a tensor, a tokenizer_config one a special token: a few MB at the most.
_MOST_JSON = 64 << 20
_MOST_CARD = 64 << 10
_CONTEXTS = ("max_position_embeddings", "n_positions", "max_sequence_length")
_LICENSE = re.compile(r"\A---\s*\n(?:(?!---).*\n)*?license:[ \t]*['\"]?([\w.-]+)")


def inspect_folder(files: Mapping[str, Path]) -> WeightsInfo:
    """Check a folder of weights: `files` by their path in it, relative and with '/'.

    Every safetensors file is checked; those that make up the model (the shards of the index, else `model.safetensors`,
    else the only one) are described, with the file each tensor lies in. A folder with one GGUF file and no safetensors
    is that file.

    Raises:
        UnsafeWeightsError: some files are pickles; the message names them.
        MalformedWeightsError: a file is damaged, the index does not match its shards, or config.json is not one.
        NotFoundError, StoreError: a file is not there or cannot be read.
    """
    kinds = {name: sniff(path, name) for name, path in sorted(files.items())}
    pickles = [name for name, kind in kinds.items() if kind == "pickle"]
    if pickles:
        raise unsafe(pickles)
    shards = {name: kind for name, kind in kinds.items() if kind == "safetensors" or name.endswith(".safetensors")}
    if not shards:
        return _only_gguf(files, [name for name, kind in kinds.items() if kind == "gguf"])
    infos = {name: inspect(files[name], name=name) for name in shards}
    tensors, metadata = _model(files, infos)
    return _described(_Configs.read(files), tensors, metadata, _license(files))


def _only_gguf(files: Mapping[str, Path], found: list[str]) -> WeightsInfo:
    if len(found) == 1:
        return inspect(files[found[0]], name=found[0])
    what = f"{len(found)} GGUF files ({', '.join(map(repr, found[:5]))})" if found else "neither safetensors nor GGUF"
    raise MalformedWeightsError(
        f"the folder holds {what}",
        hint="Name one of the files." if found else "A model is a GGUF file, or config.json and *.safetensors.",
        files=found,
    )


def _model(
    files: Mapping[str, Path], infos: Mapping[str, WeightsInfo]
) -> tuple[tuple[TensorInfo, ...], dict[str, str | int | float | bool]]:
    """The tensors that make up the model, and what the first of their files says of itself."""
    top = [name for name in infos if "/" not in name]
    if _INDEX in files:
        names = _checked_index(Named(files[_INDEX], _INDEX), infos)
    elif _WHOLE in infos:
        names = [_WHOLE]
    elif len(top) == 1:
        names = top
    else:
        raise MalformedWeightsError(
            f"the folder has {len(top)} safetensors files side by side and no {_INDEX} that says what belongs together",
            hint=f"Add the publisher's {_INDEX}, or name one of the files.",
            files=top,
        )
    tensors = tuple(replace(tensor, file=name) for name in names for tensor in infos[name].tensors)
    return tensors, dict(infos[names[0]].metadata)


def _checked_index(named: Named, infos: Mapping[str, WeightsInfo]) -> list[str]:
    """The shards of the index, in order, once it says of every tensor in them where it is, and of no other."""
    weight_map = _json(named).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise named.malformed("weight_map must give a file name for each tensor")
    claimed: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        claimed.setdefault(shard, set()).add(tensor)
    missing = sorted(claimed.keys() - infos.keys())
    if missing or not claimed:
        raise named.malformed(
            f"it names {', '.join(map(repr, missing[:5])) or 'no file'}, which the folder does not hold",
            hint="Fetch all shards of the model.",
            missing=missing,
        )
    for shard, names in claimed.items():
        found = {tensor.name for tensor in infos[shard].tensors}
        if found != names:
            wrong = min(found ^ names)
            where = f"in {shard!r}, where it is not" if wrong in names else f"not at all, and {shard!r} holds it"
            raise named.malformed(f"it has the tensor {wrong!r} {where}", tensor=wrong, shard=shard)
    return sorted(claimed)


@dataclass(frozen=True, slots=True)
class _Configs:
    """The JSON files beside the weights."""

    config: Named
    values: dict[str, Any]
    tokenizer: Named | None
    tokenizer_values: dict[str, Any]
    chat_template: bool

    @classmethod
    def read(cls, files: Mapping[str, Path]) -> _Configs:
        found = {
            name: Named(files[name], name)
            for name in ("config.json", "adapter_config.json", "tokenizer_config.json")
            if name in files
        }
        config = found.get("config.json") or found.get("adapter_config.json")
        if config is None:
            raise MalformedWeightsError(
                "the folder has safetensors but no config.json, so nothing says what to build of them",
                hint="Fetch config.json with the weights.",
            )
        tokenizer = found.get("tokenizer_config.json")
        tokenizer_values = _json(tokenizer) if tokenizer else {}
        template = "chat_template.jinja" in files or bool(tokenizer_values.get("chat_template"))
        return cls(config, _json(config), tokenizer, tokenizer_values, template)


def _described(
    configs: _Configs,
    tensors: tuple[TensorInfo, ...],
    metadata: dict[str, str | int | float | bool],
    license: str | None,
) -> WeightsInfo:
    config, values = configs.config, configs.values
    inner = values.get("text_config")  # models that also see or hear keep the language model's figures here
    inner = inner if isinstance(inner, dict) else {}
    elements: dict[str, int] = {}
    for tensor in tensors:
        elements[tensor.dtype] = elements.get(tensor.dtype, 0) + tensor.elements
    for key, value in values.items():
        if isinstance(value, str | int | float):
            metadata[plain(key)] = storable(value)
    metadata["chat_template"] = configs.chat_template
    metadata["tensor_types"] = shares(elements)
    contexts = [_count(config, source, key) for key in _CONTEXTS for source in (values, inner)]
    return WeightsInfo(
        format="safetensors",
        architecture=_architecture(config, values),
        parameters=sum(elements.values()),
        tokenizer=_text(configs.tokenizer or config, configs.tokenizer_values, "tokenizer_class"),
        vocabulary=_count(config, values, "vocab_size") or _count(config, inner, "vocab_size"),
        context_length=next((count for count in contexts if count), None),
        quantization=_quantization(config, values) or dominant(elements),
        license=license,
        metadata=metadata,
        tensors=tensors,
    )


def _architecture(named: Named, values: dict[str, Any]) -> str | None:
    listed = values.get("architectures")
    if listed is None:
        return _text(named, values, "model_type")
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise named.malformed(f"architectures is {str(listed)[:80]!r}, and must be a list of names")
    return plain(listed[0]) if listed else _text(named, values, "model_type")


def _quantization(named: Named, values: dict[str, Any]) -> str | None:
    """What `quantization_config` says, as GPTQ 4-bit: the stored types are then only a container."""
    found = values.get("quantization_config")
    if found is None:
        return None
    if not isinstance(found, dict):
        raise named.malformed("quantization_config must be an object")
    method, bits = _text(named, found, "quant_method"), _count(named, found, "bits")
    return method and (f"{method.upper()} {bits}-bit" if bits else method.upper())


def _text(named: Named, values: dict[str, Any], key: str) -> str | None:
    value = values.get(key)
    if not isinstance(value, str | None):
        raise named.malformed(f"{key} is {str(value)[:80]!r}, and must be text")
    return plain(value) if value else None


def _count(named: Named, values: dict[str, Any], key: str) -> int | None:
    value = values.get(key)
    if value is not None and (type(value) is not int or value < 1):
        raise named.malformed(f"{key} is {str(value)[:80]!r}, and must be a whole number from 1 up")
    return value


def _json(named: Named) -> dict[str, Any]:
    raw = _start(named.path, _MOST_JSON + 1)
    if len(raw) > _MOST_JSON:
        raise named.malformed(f"it is longer than {_MOST_JSON} bytes")
    return parsed_object(named, raw, "it")


def _license(files: Mapping[str, Path]) -> str | None:
    """What the model card says in its front matter."""
    if "README.md" not in files:
        return None
    found = _LICENSE.match(_start(files["README.md"], _MOST_CARD).decode("utf-8", errors="replace"))
    return found[1] if found else None


def _start(path: Path, most: int) -> bytes:
    with open_regular(path) as file:
        try:
            return file.read(most)
        except OSError as error:
            raise unreadable(path, error) from error
