"""Small vocabularies, learnt from the probes by the library `tokenizers`, as keys of a GGUF file."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from pressroom.compress.export._probes import COMBINING, PROBES
from pressroom.compress.export._splits import SPLITS, pre_tokenizer

MARKS = ("<|begin|>", "<|end|>", "<pad>")


@cache
def byte_pairs(pre: str, size: int = 900) -> Tokenizer:
    """A tokenizer as a model's publisher would make it, that cuts texts like `pre`."""
    found = Tokenizer(models.BPE(ignore_merges=SPLITS[pre].whole))
    found.pre_tokenizer = pre_tokenizer(SPLITS[pre])
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator((PROBES + COMBINING) * 2, trainer)
    return found


@cache
def sentence_pieces(size: int = 900) -> Tokenizer:
    """The same with bytes for what is no token, and blanks that are letters, as SentencePiece does."""
    found = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    found.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    found.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fixed = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=fixed, show_progress=False)
    found.train_from_iterator(PROBES[:2] * 2, trainer)
    # Trained with words cut apart; then used without, as SentencePiece's are.
    described = _without_cuts(found)
    return Tokenizer.from_str(described)


def _without_cuts(tokenizer: Tokenizer) -> str:
    import json

    found = json.loads(tokenizer.to_str())
    found["pre_tokenizer"] = None
    # Bytes are no markers that are looked for in a text.
    found["added_tokens"] = [one for one in found["added_tokens"] if not one["content"].startswith("<0x")]
    return json.dumps(found)


def tokens_of(tokenizer: Tokenizer) -> list[str]:
    """Every token by its number."""
    return [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda one: one[1])]


def byte_pair_keys(pre: str) -> dict[str, Any]:
    """What a GGUF file says of it."""
    import json

    tokenizer = byte_pairs(pre)
    tokens = tokens_of(tokenizer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in MARKS else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{% for m in messages %}<|begin|>{{ m['content'] }}<|end|>{% endfor %}",
    }
