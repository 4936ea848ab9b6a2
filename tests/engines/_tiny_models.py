"""Models of a few thousand parameters with random weights, made by the libraries themselves, as whole folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEXT = """The quick brown fox jumps over the lazy dog. A visitor sees the harbour on a quiet morning in winter.
Wörter mit Umlauten, 日本語の文章, emoji 🙂🙃 and numbers 1 2 3 4 5. {"name": "value", "list": [1, 2, 3]} <tag> </tag>
Say hello to the reader of this book. The answer is in the question, and the question is in the answer."""

CHAT = """{% for tool in tools or [] %}{{ '<|im_start|>tool\n' + (tool | tojson) + '<|im_end|>\n' }}{% endfor %}
{%- if tools %}{{ 'Answer with <tool_call>{"name": ..., "arguments": ...}</tool_call>.\n' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'function' %}{{ raise_exception('there are no functions here') }}{% endif %}
{{- '<|im_start|>' + message.role + '\n' + message.content }}
{%- for call in message.tool_calls or [] %}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{% endfor %}
{{- '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_level() -> Any:
    """A tokenizer as GPT-2's and its many heirs: bytes, joined by a few merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>", pad_token="<|endoftext|>"
    )
    wrapped.chat_template = CHAT
    return wrapped


def pieces() -> Any:
    """A tokenizer as Llama 2's and Mistral's: pieces with ▁ for a space, and bytes for what has none."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for word in ("▁", "a", "b", "c", "▁a", "▁b", "ab", "é", "▁the", "th", "▁th", "e", "t", "h"):
        vocabulary[word] = len(vocabulary)
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("t", "h"), ("▁", "th"), ("▁th", "e")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_pieces() -> Any:
    """A tokenizer as BERT's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", "the", "cat", "dog", "runs", "fast"]
    vocabulary = {word: number for number, word in enumerate([*words, *(f"##{letter}" for letter in words[4:30])])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    # Published sentence encoders say this in their tokenizer.json: cut to so many tokens, and fill up to them.
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def save(model: Any, tokenizer: Any, folder: Path) -> Path:
    """The two as a folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def causal(kind: str = "Llama", *, tokenizer: Any = None, **more: Any) -> tuple[Any, Any]:
    """A causal model in float32, and its tokenizer."""
    import torch
    import transformers

    tokenizer = tokenizer or byte_level()
    base = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        # Large weights: with small ones all tokens are about as likely, and every answer is one token repeated.
        "initializer_range": 0.5,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(3)
    config = getattr(transformers, f"{kind}Config")(**{**base, **more})
    head = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    model = getattr(transformers, kind + head)(config).eval()
    with torch.no_grad():
        # Never the likeliest: an answer of the tests goes on until something else ends it.
        model.get_output_embeddings().weight[tokenizer.all_special_ids] = 0
    return model, tokenizer


def encoder(folder: Path, *, pooling: str = "mean_tokens", normal: bool = True) -> Path:
    """A sentence encoder as sentence-transformers lays it out."""
    import torch
    from transformers import BertConfig, BertModel

    tokenizer = word_pieces()
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    save(BertModel(config).eval(), tokenizer, folder)
    modes = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 16, **{f"pooling_mode_{mode}": mode == pooling for mode in modes}})
    )
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normal else [])]
    modules = [
        {
            "idx": n,
            "name": str(n),
            "path": "" if not n else f"{n}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for n, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32, "do_lower_case": false}')
    return folder
