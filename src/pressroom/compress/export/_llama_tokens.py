"""How llama.cpp cuts texts with the tokenizer of a GGUF file, asked in a process of its own.

As a program: a task as JSON on stdin (`model`, `texts`), the tokens as JSON on stdout. The model is a stand-in of one
tiny layer with that tokenizer, so that a vocabulary is tried in a second whatever the weights are.
"""

from __future__ import annotations

import ctypes as c
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pressroom.compress.export._gguf_file import Key, Tensor, write_gguf
from pressroom.kernel import EngineError

_WORDS = 256
_WIDTH = 32
_WAIT_S = 300.0


def llama_tokens(keys: Mapping[str, Key], texts: Sequence[str]) -> list[list[int]] | None:
    """The tokens of each text, markers in it taken as what they are, with what every text begins and ends with. `keys`
    are those of the tokenizer. None where llama.cpp is not installed.

    Raises:
        EngineError: llama.cpp does not take the tokenizer.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        return None
    with tempfile.TemporaryDirectory(prefix="pressroom-tokens-") as folder:
        model = Path(folder) / "tokenizer.gguf"
        _stand_in(model, keys)
        task = json.dumps({"model": str(model), "texts": list(texts)})
        done = subprocess.run(
            [sys.executable, "-P", "-m", "pressroom.compress.export._llama_tokens"],
            input=task.encode(),
            capture_output=True,
            timeout=_WAIT_S,
            check=False,
        )
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").splitlines()
        said = [line for line in lines if "error" in line.lower()] or lines[-1:]
        raise EngineError(
            f"llama.cpp does not take this tokenizer: {said[0].strip() if said else 'it ended without a word'}",
            hint="Its last lines say why.",
            lines=lines[-15:],
        )
    found: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return found


def _stand_in(path: Path, tokenizer: Mapping[str, Key]) -> None:
    import numpy as np

    from pressroom.compress.numbers import number_format

    tokens = tokenizer["tokenizer.ggml.tokens"]
    assert isinstance(tokens, Sequence)
    keys: dict[str, Key] = {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": _WIDTH,
        "llama.feed_forward_length": _WIDTH,
        "llama.attention.head_count": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": _WIDTH,
    }
    square, flat = (_WIDTH, _WIDTH), (_WIDTH,)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(tokens), _WIDTH), "output_norm.weight": flat}
    for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        shapes[f"blk.0.{part}.weight"] = square
    shapes |= {f"blk.0.{part}.weight": flat for part in ("attn_norm", "ffn_norm")}
    small, full = number_format("q8_0"), number_format("f32")

    def zeros(size: int) -> Any:
        return lambda: np.zeros(size, np.uint8)

    tensors = []
    for name, shape in shapes.items():
        format = small if len(shape) == 2 else full
        size = int(np.prod(shape)) // format.block * format.nbytes
        tensors.append(Tensor(name, shape, format, zeros(size)))
    write_gguf(path, {**keys, **tokenizer}, tensors)


class _Params(c.Structure):
    _fields_ = [("words", c.c_uint32 * _WORDS)]


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_model_default_params": (_Params, []),
    "llama_model_load_from_file": (c.c_void_p, [c.c_char_p, _Params]),
    "llama_model_get_vocab": (c.c_void_p, [c.c_void_p]),
    "llama_tokenize": (
        c.c_int32,
        [c.c_void_p, c.c_char_p, c.c_int32, c.POINTER(c.c_int32), c.c_int32, c.c_bool, c.c_bool],
    ),
}


def _main() -> None:
    import xllamacpp.xllamacpp as binding

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is not an answer
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    task = json.loads(sys.stdin.buffer.read())
    library = c.CDLL(binding.__file__)
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    model = library.llama_model_load_from_file(task["model"].encode(), library.llama_model_default_params())
    if not model:
        sys.exit(1)
    vocabulary = library.llama_model_get_vocab(model)
    found = []
    for text in task["texts"]:
        data = text.encode()
        room = (c.c_int32 * (2 * len(data) + 16))()
        count = library.llama_tokenize(vocabulary, data, len(data), room, len(room), True, True)
        found.append(list(room[:count]))
    answers.write(json.dumps(found) + "\n")
    answers.flush()
    os._exit(0)  # without what libraries do at the end


if __name__ == "__main__":
    _main()
