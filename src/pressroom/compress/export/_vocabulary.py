"""The tokenizer of a folder of transformers as keys of a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressroom.compress.export._probes import PROBES
from pressroom.compress.export._splits import SPLITS, pre_tokenizer
from pressroom.compress.export._tokenizer_files import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER
from pressroom.kernel import MissingDependencyError, RecipeError

if TYPE_CHECKING:
    from pressroom.compress.export._safetensors import Folder

_FILE = "tokenizer.json"
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_BLANK = "▁"


def tokenizer_keys(folder: Folder, size: int) -> dict[str, Any]:
    """The keys tokenizer.* for an embedding of `size` rows.

    Raises:
        RecipeError: there is no tokenizer, or one that llama.cpp does not have.
        MissingDependencyError: the library `tokenizers` is missing.
    """
    tokenizer, described = loaded(folder)
    model = described.get("model") or {}
    if model.get("type") != "BPE":
        raise _unknown(f"of the kind {model.get('type')!r}, and byte pairs (BPE) are taken")
    tokens, kinds = _tokens(described, size)
    sentence = bool(model.get("byte_fallback"))
    keys: dict[str, Any] = {"tokenizer.ggml.model": "llama" if sentence else "gpt2"}
    merges = [tuple(one.split(" ", 1)) if isinstance(one, str) else tuple(one) for one in model.get("merges", [])]
    if sentence:
        kinds = [
            BYTE if _is_byte(token) and kind == NORMAL else kind for token, kind in zip(tokens, kinds, strict=True)
        ]
        unknown = model.get("unk_token")
        if unknown in model["vocab"]:
            kinds[model["vocab"][unknown]] = UNKNOWN
        keys["tokenizer.ggml.pre"] = "default"
        keys["tokenizer.ggml.scores"] = _scores(tokens, kinds, merges)
        encoded = tokenizer.encode("a", add_special_tokens=False).tokens
        keys["tokenizer.ggml.add_space_prefix"] = bool(encoded) and encoded[0].startswith(_BLANK)
    else:
        keys["tokenizer.ggml.pre"] = _split_of(tokenizer, described)
        keys["tokenizer.ggml.merges"] = [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in merges]
    keys["tokenizer.ggml.tokens"] = tokens
    keys["tokenizer.ggml.token_type"] = kinds
    return keys | _special(folder, tokenizer, tokens)


def loaded(folder: Folder) -> tuple[Any, dict[str, Any]]:
    """The tokenizer as an object of the library `tokenizers`, and what its file says. Raises as `tokenizer_keys`."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependencyError(
            "reading a tokenizer needs the library 'tokenizers', which is not installed",
            hint="Install it: pip install 'pressroom[compress]'",
            missing="tokenizers",
        ) from error
    path = folder.path / _FILE
    if not path.is_file():
        others = [name for name in ("tokenizer.model", "vocab.json", "spiece.model") if (folder.path / name).is_file()]
        has = f", but {' and '.join(others)}" if others else ""
        raise RecipeError(
            f"{folder.called} has no {_FILE}{has}",
            hint="Add the publisher's, or make one: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER).",
            found=others,
        )
    described = folder.json(_FILE)
    try:
        return Tokenizer.from_file(str(path)), described
    except Exception as error:  # the library raises nothing narrower
        raise RecipeError(f"{_FILE} of {folder.called} is none: {error}", hint="Fetch it again.") from error


def _tokens(described: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Every token by its number, with its kind; rows of the embedding without a token are unused."""
    found: dict[int, tuple[str, int]] = {
        number: (token, NORMAL) for token, number in described["model"]["vocab"].items()
    }
    for added in described.get("added_tokens") or []:
        found[added["id"]] = (added["content"], CONTROL if added.get("special") else USER)
    if found and max(found) >= size:
        raise _unknown(f"of {max(found) + 1:,} tokens, and the embedding has {size:,}")
    every = [found.get(number, (f"[PAD{number}]", UNUSED)) for number in range(size)]
    return [token for token, _ in every], [kind for _, kind in every]


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _scores(tokens: list[str], kinds: list[int], merges: list[tuple[str, ...]]) -> list[float]:
    """Scores in the order of the merges: SentencePiece merges the pair of the best score first. A token that several
    pairs make has the rank of the first."""
    rank: dict[str, int] = {}
    for number, pair in enumerate(merges):
        rank.setdefault("".join(pair), number)
    last = float(len(merges))
    return [
        -float(rank.get(token, last)) if kind in (NORMAL, USER) else 0.0
        for token, kind in zip(tokens, kinds, strict=True)
    ]


def _split_of(tokenizer: Any, described: Mapping[str, Any]) -> str:
    """The name that llama.cpp has for how the tokenizer cuts texts: the first that gives the same tokens throughout."""
    from tokenizers import Tokenizer

    if described.get("normalizer") and described["normalizer"].get("type") != "NFC":
        raise _unknown(
            f"with a normaliser ({described['normalizer'].get('type')}), which llama.cpp does not have for it"
        )
    wanted = [tokenizer.encode(text, add_special_tokens=False).ids for text in PROBES]
    model = dict(described["model"])
    bare = {**described, "post_processor": None, "pre_tokenizer": None, "normalizer": described.get("normalizer")}
    for name, split in SPLITS.items():
        tried = Tokenizer.from_str(json.dumps({**bare, "model": {**model, "ignore_merges": split.whole}}))
        tried.pre_tokenizer = pre_tokenizer(split)
        if [tried.encode(text, add_special_tokens=False).ids for text in PROBES] == wanted:
            return name
    raise _unknown("that cuts texts as none of those known here does")


def _special(folder: Folder, tokenizer: Any, tokens: list[str]) -> dict[str, Any]:
    settings, generation = folder.json("tokenizer_config.json"), folder.json("generation_config.json")
    numbers = {token: number for number, token in enumerate(tokens)}
    found: dict[str, Any] = {}
    for ours, theirs in _SPECIAL.items():
        named = settings.get(f"{ours}_token")
        named = named.get("content") if isinstance(named, dict) else named
        number = numbers.get(named) if isinstance(named, str) else None
        if number is None:
            number = _first(folder.config.get(f"{ours}_token_id", generation.get(f"{ours}_token_id")))
        if number is not None and 0 <= number < len(tokens):
            found[f"tokenizer.ggml.{theirs}_token_id"] = number
    ends = generation.get("eos_token_id")
    others = [one for one in ends if one != found.get("tokenizer.ggml.eos_token_id")] if isinstance(ends, list) else []
    found |= {f"tokenizer.ggml.{key}_token_id": one for key, one in zip(("eot", "eom"), others, strict=False)}
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    for key, adds in (("bos", whole[: -len(plain)] != []), ("eos", whole[len(plain) :] != [])):
        number = found.get(f"tokenizer.ggml.{key}_token_id")
        said = settings.get(f"add_{key}_token")
        there = whole != plain and number is not None and (whole[0] if key == "bos" else whole[-1]) == number
        found[f"tokenizer.ggml.add_{key}_token"] = (
            bool(said) if isinstance(said, bool) and number is not None else there and adds
        )
    template = _template(folder.path, settings)
    if template:
        found["tokenizer.chat_template"] = template
    return found


def _template(folder: Path, settings: Mapping[str, Any]) -> str:
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):  # several by name
        found = next((one.get("template") for one in found if one.get("name") == "default"), None)
    return found if isinstance(found, str) else ""


def _first(value: Any) -> int | None:
    found = value[0] if isinstance(value, list) and value else value
    return found if type(found) is int else None


def _unknown(what: str) -> RecipeError:
    return RecipeError(
        f"the folder has a tokenizer {what}",
        hint=f"Known are SentencePiece's byte pairs, and those that cut texts like {', '.join(SPLITS)}.",
    )
