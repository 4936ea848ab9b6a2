"""Computes the distributions that an engine is compared with, in a process of its own: a crash of native code, and the
memory of a second copy of the model, stay here.

Started by `pressroom.engines._parity_reference` as an engine is: the task is JSON in `argv[1]`, the end of stdin ends
it, and every answer is one line of JSON on stdout.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pressroom.engines import child
from pressroom.kernel import EngineError

# Tokens a prompt may have: more than any of ours in any tokenizer, bytes included.
_WINDOW = 1024


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    task = child.read_spec()
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    compute = _with_llama if task["format"] == "gguf" else _with_transformers
    try:
        for tokens, logits in compute(task, answer):
            ids, logprobs = _top(logits, int(task["top"]))
            answer(tokens=tokens, ids=ids, logprobs=logprobs)
    except EngineError as error:
        answer(error=error.message, hint=error.hint)
        sys.exit(1)


def _top(logits: NDArray[np.float32], count: int) -> tuple[list[int], list[float]]:
    """The likeliest tokens with the natural logarithms of their probabilities, best first."""
    rows = logits.astype(np.float64)
    if not np.isfinite(rows).any() or np.isnan(rows).any():
        raise EngineError(
            "the reference gives no probabilities (not a number)",
            hint="The weights are damaged or of a kind that is computed wrongly here; pull them again.",
        )
    rows -= rows.max()
    rows -= np.log(np.exp(rows).sum())
    best = np.argsort(-rows, kind="stable")[:count]
    return best.tolist(), [round(value, 7) for value in rows[best].tolist()]


def _with_llama(task: dict[str, Any], answer: Callable[..., None]) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    import xllamacpp

    from pressroom.engines._llama import Llama

    class Reference(Llama):
        def prompt(self, text: str) -> NDArray[np.int32]:
            """The text as tokens as a server would take it: markers in it are markers."""
            data = text.encode()
            room = len(data) + 8
            buffer = np.zeros(room, dtype=np.int32)
            place = buffer.ctypes.data_as(self._lib.llama_tokenize.argtypes[3])
            count = self._lib.llama_tokenize(self._vocab, data, len(data), place, room, True, True)
            if not 0 < count <= self.window:
                raise EngineError(f"llama.cpp makes {count} tokens of a prompt for the comparison")
            return buffer[:count]

        def after(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
            """The logits after all of `tokens`. In one step of exactly as many tokens as a server takes: with one more
            or less, other kernels may be chosen, which round otherwise."""
            batch, last = self._batch, len(tokens) - 1
            for i, token in enumerate(tokens.tolist()):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
                batch.seq_id[i][0] = 0
                batch.logits[i] = i == last
            batch.n_tokens = len(tokens)
            self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)
            status = self._lib.llama_decode(self._context, batch)
            if status != 0:
                raise EngineError(f"llama.cpp cannot read a prompt of {len(tokens)} tokens: status {status}")
            return np.ctypeslib.as_array(self._lib.llama_get_logits(self._context), shape=(self.vocabulary,))

    llama = Reference(Path(task["model"]), window=_WINDOW, threads=int(task["threads"]))
    answer(by=f"llama.cpp's own logits (xllamacpp {xllamacpp.__version__})", vocabulary=llama.vocabulary)
    for text in task["prompts"]:
        tokens = llama.prompt(text)
        yield tokens.tolist(), llama.after(tokens)


def _with_transformers(
    task: dict[str, Any], answer: Callable[..., None]
) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    # Neither is installed everywhere, and one of them has no types.
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(int(task["threads"]))
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(task["model"], trust_remote_code=False)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            task["model"], dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise EngineError(f"transformers cannot load it: {error}") from error
    model.eval()
    rows = int(model.get_output_embeddings().weight.shape[0])
    answer(by=f"transformers {transformers.__version__} in float32", vocabulary=rows)
    for text in task["prompts"]:
        tokens = tokenizer(text, return_tensors="pt")["input_ids"][:, : _WINDOW - 1]
        with torch.inference_mode():
            logits = model(input_ids=tokens, use_cache=False).logits[0, -1].float()
        yield tokens[0].tolist(), logits.numpy()


if __name__ == "__main__":
    main()
