"""Files that are written load in llama.cpp and say what they should: the figures of it, not ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pressroom.compress.numbers import number_format
from pressroom.compress.weights import Changed, check, open_weights, same, write
from pressroom.engines import perplexity
from pressroom.kernel import EngineError

from .gguf_files import tiny

TEXT = "the quick brown fox jumps over the lazy dog, and the dog looks at it. " * 12


def test_a_tiny_model(tmp_path: Path) -> None:
    model = tiny(tied=True).write(tmp_path / "a.gguf")
    found = []
    with open_weights(model) as source:
        assert source.embedding is not None
        for to in ("q8_0", "q4_0"):
            format = number_format(to)
            names = [tensor.name for tensor in (*source.linears, source.embedding)]
            path = tmp_path / f"{to}.gguf"
            size = write(path, source, {name: Changed(format, format.encode(source.rows(name))) for name in names})
            assert size == check(source, dict.fromkeys(names, to)).size
            found.append(perplexity(path, TEXT, windows=1, threads=1, reference=model))
    small, large = found
    assert small.unlike == large.unlike == "" and small.kl is not None and large.kl is not None
    # Random weights guess among 288 tokens; 8 bits a weight change little of that, 4 bits more.
    assert 0 < small.kl < 0.02 < large.kl < 1


def test_data_that_are_not_the_weights_show(tmp_path: Path) -> None:
    """What the test above would not see if the model's answers did not hang on the written data."""
    model = tiny(tied=True).write(tmp_path / "a.gguf")
    with open_weights(model) as source:
        format = number_format("q8_0")
        name = "blk.0.ffn_up.weight"
        wrong = format.encode(np.ascontiguousarray(source.rows(name)[::-1]))
        write(tmp_path / "b.gguf", source, {name: Changed(format, wrong)})
    found = perplexity(tmp_path / "b.gguf", TEXT, windows=1, threads=1, reference=model)
    assert found.kl is not None and found.kl > 0.1


@pytest.mark.slow
def test_the_real_model(smollm2: Path, tmp_path: Path) -> None:
    text = "It was the best of times, it was the worst of times, it was the age of wisdom and of foolishness. " * 30
    with open_weights(smollm2) as source:
        assert source.tied and len(source.linears) == 210
        write(tmp_path / "same.gguf", source, {})
        assert (tmp_path / "same.gguf").read_bytes() == smollm2.read_bytes()
        format = number_format("q8_0")
        # Two layers in: enough that llama.cpp must take them, and short enough for a test.
        names = [tensor.name for tensor in source.linears if tensor.layer in (0, 29)]
        path = tmp_path / "changed.gguf"
        plan = check(source, dict.fromkeys(names, "q8_0"))
        changed = {name: Changed(format, lambda name=name: [format.encode(source.rows(name))]) for name in names}
        assert write(path, source, changed) == plan.size == path.stat().st_size
        with open_weights(path) as found:
            lines = same(source, found)
        assert [line for line in lines if "tensor" in line] == [
            f"tensor {name}: {source.tensor(name).type} became Q8_0" for name in names
        ]
    measured = perplexity(path, text, windows=1, threads=2, reference=smollm2)
    # Weights of Q4_1 in Q8_0 are nearly the same: 0.35 % of a block's largest each at most.
    assert measured.kl is not None and measured.kl < 0.01


def test_what_llamacpp_refuses_it_says(tmp_path: Path) -> None:
    """The check of the tests above: a file with a key missing does not load."""
    file = tiny()
    del file.keys["llama.attention.head_count"]
    with pytest.raises(EngineError, match="cannot load"):
        perplexity(file.write(tmp_path / "a.gguf"), TEXT, windows=1, threads=1)
