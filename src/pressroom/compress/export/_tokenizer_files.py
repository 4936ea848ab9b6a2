"""The tokenizer in a GGUF file as the files that transformers reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pressroom.compress.export._splits import SPLITS, pre_tokenizer
from pressroom.kernel import MissingDependencyError, RecipeError, did_you_mean

Value = Callable[[str, Any], Any]

#: GGUF's kinds of tokens.
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_KINDS = ("gpt2", "llama")
_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
# What ends an answer beside the end of a text: of a turn, of a message.
_ENDS = ("eos", "eot", "eom")
_BLANK = "▁"


def check(value: Value) -> None:
    """Whether the tokenizer can be carried over, in milliseconds. Raises RecipeError."""
    kind = value("tokenizer.ggml.model", None)
    if kind is None or not value("tokenizer.ggml.tokens", None):
        raise RecipeError(
            "the file has no tokenizer, and a model for transformers needs one",
            hint="Take a GGUF file that holds its vocabulary, as llama.cpp's converter writes it.",
        )
    if kind not in _KINDS:
        raise RecipeError(
            f"the file's tokenizer is {kind!r}, and {' and '.join(_KINDS)} can be carried over",
            hint="Take another model, or its publisher's tokenizer.",
            asked=kind,
        )
    pre = value("tokenizer.ggml.pre", "default")
    if kind == "gpt2" and pre not in SPLITS:
        raise RecipeError(
            f"how the tokenizer {pre!r} cuts a text is not known here, and guessing would give other tokens",
            hint=did_you_mean(pre, SPLITS, otherwise=f"Known are {', '.join(SPLITS)}."),
            asked=pre,
            known=sorted(SPLITS),
        )
    if kind == "gpt2" and not value("tokenizer.ggml.merges", None):
        raise RecipeError("the file's tokenizer has no merges", hint="Convert the model again with a newer llama.cpp.")
    if any("\udc80" <= letter <= "\udcff" for token in value("tokenizer.ggml.tokens", []) for letter in token):
        raise RecipeError("the vocabulary has tokens that are no Unicode text", hint="Take the publisher's tokenizer.")


def tokenizer_of(value: Value) -> Any:
    """The tokenizer as an object of the library `tokenizers`. Raises RecipeError, MissingDependencyError."""
    check(value)
    try:
        import tokenizers
    except ImportError as error:
        raise MissingDependencyError(
            "making a tokenizer needs the library 'tokenizers', which is not installed",
            hint="Install it: pip install 'pressroom[compress]'",
            missing="tokenizers",
        ) from error
    build = _byte_pairs if value("tokenizer.ggml.model", None) == "gpt2" else _sentence_pieces
    found = build(tokenizers, value)
    tokens, kinds = value("tokenizer.ggml.tokens", []), value("tokenizer.ggml.token_type", [])
    for special, kind in ((True, CONTROL), (False, USER)):
        added = [
            tokenizers.AddedToken(token, normalized=False, special=special)
            for token, is_kind in zip(tokens, kinds, strict=False)
            if is_kind == kind
        ]
        if added:
            (found.add_special_tokens if special else found.add_tokens)(added)
    ends = added_ends(value)
    if ends != (None, None):
        found.post_processor = _around(tokenizers, tokens, *ends)
    return found


def write(value: Value, folder: Path, *, context: int) -> dict[str, Any]:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json; returns what config.json says of it."""
    tokens = value("tokenizer.ggml.tokens", [])
    tokenizer_of(value).save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    ids: dict[str, Any] = {}
    for name, key in _SPECIAL.items():
        number = value(f"tokenizer.ggml.{key}_token_id", None)
        if number is not None and 0 <= number < len(tokens):
            config[name] = tokens[number]
            if name != "unk_token":
                ids[f"{name}_id"] = number
    template = value("tokenizer.chat_template", None)
    if template:
        config["chat_template"] = _templates(value, template)
    _save(folder / "tokenizer_config.json", config)
    ends = [value(f"tokenizer.ggml.{key}_token_id", None) for key in _ENDS]
    several = list(dict.fromkeys(number for number in ends if number is not None))
    generation = {**ids, **({"eos_token_id": several} if len(several) > 1 else {})}
    _save(folder / "generation_config.json", generation)
    return ids


def _save(path: Path, found: dict[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _templates(value: Value, default: str) -> Any:
    names = value("tokenizer.chat_templates", None) or []
    several = {name: value(f"tokenizer.chat_template.{name}", None) for name in names}
    if not any(several.values()):
        return default
    every = {"default": default, **several}
    return [{"name": name, "template": text} for name, text in every.items() if text]


def _byte_pairs(tokenizers: Any, value: Value) -> Any:
    split = SPLITS[value("tokenizer.ggml.pre", "")]
    vocabulary = {token: number for number, token in enumerate(value("tokenizer.ggml.tokens", []))}
    merges = [tuple(merge.split(" ", 1)) for merge in value("tokenizer.ggml.merges", [])]
    model = tokenizers.models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split.whole)
    found = tokenizers.Tokenizer(model)
    found.pre_tokenizer = pre_tokenizer(split)
    found.decoder = tokenizers.decoders.ByteLevel()
    found.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    return found


def _sentence_pieces(tokenizers: Any, value: Value) -> Any:
    """Pairs are merged in the order of their score, as SentencePiece does; what is no token is bytes."""
    tokens = value("tokenizer.ggml.tokens", [])
    kinds = value("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    scores = value("tokenizer.ggml.scores", [0.0] * len(tokens))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    unknown = value("tokenizer.ggml.unknown_token_id", 0)
    model = tokenizers.models.BPE(
        vocab=vocabulary,
        merges=_merges(tokens, kinds, scores),
        unk_token=tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    found = tokenizers.Tokenizer(model)
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    prefix = value("tokenizer.ggml.add_space_prefix", True)
    steps = [normalizers.Prepend(_BLANK)] if prefix else []
    found.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _BLANK)])
    ends = [decoders.Strip(" ", 1, 0)] if prefix else []
    found.decoder = decoders.Sequence([decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), *ends])
    return found


def _merges(tokens: list[str], kinds: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """The pairs that make a token, those of the best score first."""
    plain = {
        token: score
        for token, kind, score in zip(tokens, kinds, scores, strict=True)
        if kind in (NORMAL, USER, UNUSED) and token
    }
    found = [
        (-score, len(token), token[:cut], token[cut:])
        for token, score in plain.items()
        for cut in range(1, len(token))
        if token[:cut] in plain and token[cut:] in plain
    ]
    return [(left, right) for _, _, left, right in sorted(found, key=lambda one: one[:2])]


def added_ends(value: Value) -> tuple[int | None, int | None]:
    """The tokens that llama.cpp puts at the beginning and the end of every text; None where it puts none."""
    kind, pre = value("tokenizer.ggml.model", ""), value("tokenizer.ggml.pre", "")
    # What llama.cpp does where the file does not say.
    default = kind == "llama" or (kind == "gpt2" and pre in SPLITS and SPLITS[pre].whole)
    found: list[int | None] = []
    for key, adds in (("bos", default), ("eos", False)):
        number = value(f"tokenizer.ggml.{key}_token_id", None)
        found.append(number if value(f"tokenizer.ggml.add_{key}_token", adds) else None)
    return found[0], found[1]


def _around(tokenizers: Any, tokens: list[str], first: int | None, last: int | None) -> Any:
    before = [] if first is None else [tokens[first]]
    after = [] if last is None else [tokens[last]]
    ids = [(tokens[number], number) for number in (first, last) if number is not None]
    return tokenizers.processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *(f"{each}:1" for each in before), "$B:1", *(f"{each}:1" for each in after)],
        special_tokens=ids,
    )
