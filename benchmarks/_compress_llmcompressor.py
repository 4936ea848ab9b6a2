"""SparseGPT of llm-compressor, in its own environment; started by `_compress_sparse.py` with a task in JSON.

The model is a folder of transformers', the tokens a row a window. Every linear layer but the head is pruned by half, as
the library does it: layer after layer, each calibrated behind those that are pruned. The weights go to `into`.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast


def main() -> None:
    task = json.loads(sys.argv[1])
    torch.set_num_threads(int(task["threads"]))
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in np.load(task["tokens"]).tolist()]
    data = Dataset.from_list(rows).with_format("torch")
    oneshot(
        model=model,
        # It wants one, and has nothing to do for it: the text is tokens already.
        processor=PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())),
        dataset=DataLoader(data, batch_size=1),
        recipe=SparseGPTModifier(sparsity=0.5, ignore=["re:.*lm_head"]),
        num_calibration_samples=len(rows),
    )
    pruned = {name: part.weight.detach().float().contiguous() for name, part in linears(model)}
    kept = sum(int((weight != 0).sum()) for weight in pruned.values())
    share = 1 - kept / sum(weight.numel() for weight in pruned.values())
    if abs(share - 0.5) > 0.005:
        raise SystemExit(f"{share:.4f} of the weights are zero, not half")
    save_file({f"{name}.weight": weight for name, weight in pruned.items()}, task["into"])
    print(f"{share:.5f}")


def linears(model: torch.nn.Module) -> list[tuple[str, torch.nn.Linear]]:
    """The linear layers within the model's blocks."""
    every = model.named_modules()
    return [(name, part) for name, part in every if isinstance(part, torch.nn.Linear) and "lm_head" not in name]


if __name__ == "__main__":
    main()
