"""What the steps are made of: losses, grids, masks, text, a teacher's answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pressroom.compress.calibrate._llama import Llama
from pressroom.compress.models import load
from pressroom.compress.numbers import number_format
from pressroom.compress.training import Grids, Masks, Mix, Vocabulary, cut, shares, tokenised, zeros
from pressroom.compress.training._sequences import Sampling, Written, cleaned, rows_of, written
from pressroom.compress.weights import open_weights
from pressroom.kernel import RecipeError
from tests.compress.weights.gguf_files import tiny

TEXT = "the press prints what the compositor sets, letter by letter. Ein Umlaut: ä, and a marker </s> as text. " * 9
VOCABULARY = Vocabulary(bos=1, ends=(2,), controls=(1, 2))


# ------------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize(("alpha", "temperature"), [(0.0, 2.0), (1.0, 2.0), (0.3, 4.0), (1.0, 1.0)])
def test_the_mix_of_soft_and_hard_labels(alpha: float, temperature: float) -> None:
    random = np.random.default_rng(1)
    student, teacher = random.normal(size=(2, 2, 5, 7)) * 3
    tokens = random.integers(0, 7, (2, 5))

    def log_shares(logits: Any) -> Any:
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    soft, hard = [], []
    for window in range(2):
        for at in range(4):
            p = log_shares(teacher[window, at] / temperature)
            q = log_shares(student[window, at] / temperature)
            soft.append(float((np.exp(p) * (p - q)).sum()) * temperature**2)
            hard.append(-float(log_shares(student[window, at])[tokens[window, at + 1]]))
    expected = alpha * np.mean(soft) + (1 - alpha) * np.mean(hard)
    given = [torch.tensor(one, dtype=torch.float32) for one in (student, teacher)]
    found = Mix(alpha=alpha, temperature=temperature).loss(*given, torch.tensor(tokens))
    assert float(found) == pytest.approx(expected, rel=1e-5)
    # Without a teacher it is the text's alone.
    alone = Mix(alpha=alpha, temperature=temperature).loss(given[0], None, torch.tensor(tokens))
    assert float(alone) == pytest.approx(np.mean(hard), rel=1e-5)


def test_what_is_no_answer_is_left_out() -> None:
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 6, 5, generator=random)
    tokens = torch.tensor([[~1, ~2, 3, 4, ~0, ~0]])
    found = Mix(alpha=0).loss(logits, None, tokens)
    expected = torch.nn.functional.cross_entropy(logits[0, 1:3], torch.tensor([3, 4]))
    assert float(found) == pytest.approx(float(expected))


# ------------------------------------------------------------------------------------------------------- the grids


@pytest.mark.parametrize("name", ["q8_0", "q5_1", "q4_0", "q4_1", "iq4_nl", "iq4_xs", "q6_k", "q3_k", "q2_k", "tq2_0"])
def test_what_a_pass_sees_is_what_the_file_will_hold(name: str) -> None:
    form = number_format(name)
    torch.manual_seed(1)
    layer = nn.Linear(512, 6, bias=False)
    layer.weight.data.mul_(torch.linspace(0.1, 4, 512))
    layer.weight.data[1, :256] = 0
    before = layer.weight.detach().clone()
    grids = Grids({"a": layer}, form)
    grids.attach()
    seen = layer.weight.detach().clone()
    # The scales are the format's own choice.
    assert torch.allclose(seen, torch.from_numpy(form.decode(form.encode(before.numpy()))), atol=1e-6, rtol=1e-5)
    original: Any = layer.parametrizations["weight"].original  # type: ignore[index, union-attr]
    original.data.add_(0.05 * torch.randn_like(before))
    moved = layer.weight.detach().clone()
    assert not torch.equal(moved, seen)
    # Each weight is at the nearest value of its block, and the bytes say the same.
    assert torch.allclose(moved, torch.from_numpy(form.decode(grids.packed("a"))), atol=1e-6, rtol=1e-5)
    grids.refresh()
    held = torch.from_numpy(form.decode(form.encode(original.detach().numpy())))
    assert torch.allclose(layer.weight, held, atol=1e-6, rtol=1e-5)
    grids.detach()
    assert isinstance(layer.weight, nn.Parameter) and layer.weight is original


def test_gradients_pass_the_rounding() -> None:
    layer = nn.Linear(32, 4, bias=False)
    grids = Grids({"a": layer}, number_format("q4_0"))
    grids.attach()
    x = torch.randn(3, 32)
    layer(x).square().sum().backward()
    rounded = layer.weight.detach()
    grids.detach()
    expected = 2 * (x @ rounded.T).T @ x
    assert layer.weight.grad is not None and torch.allclose(layer.weight.grad, expected, atol=1e-4)


# ------------------------------------------------------------------------------------------------------- the masks


def test_only_what_was_pruned_keeps_its_zeros() -> None:
    sparse, dense = nn.Parameter(torch.randn(20, 20)), nn.Parameter(torch.randn(20, 20))
    sparse.data[sparse.abs() < 0.5] = 0
    dense.data[0, 0] = 0
    masks = Masks({"sparse": sparse, "dense": dense})
    masks.keep_zeros()
    assert masks.names == ("sparse",)
    share = zeros({"sparse": sparse})
    sparse.data.add_(1)
    dense.data.add_(1)
    masks.apply()
    assert zeros({"sparse": sparse}) == share > 0.1 and zeros({"dense": dense}) == 0


def test_a_mask_takes_the_smallest() -> None:
    parameter = nn.Parameter(torch.tensor([[0.0, -3.0, 1.0, 1.0], [2.0, 1.0, -0.5, 4.0]]))
    masks = Masks({"a": parameter})
    masks.prune(0.5)
    assert parameter.tolist() == [[0, -3, 0, 1], [2, 0, 0, 4]] or zeros({"a": parameter}) == 0.5
    masks.prune(0)
    assert zeros({"a": parameter}) == 0.5


def test_the_schedule() -> None:
    found = [shares(step, start=2, end=12, share=0.8) for step in range(15)]
    assert found[:3] == [0, 0, 0] and found[12:] == [0.8] * 3 and found == sorted(found)
    assert found[7] == pytest.approx(0.8 * (1 - 0.5**3))


# -------------------------------------------------------------------------------------------------------- the text


def test_text_is_cut_as_llamacpp_cuts_it(tmp_path: Path) -> None:
    path = tiny().write(tmp_path / "a.gguf")
    vocabulary, tokens = tokenised(path, TEXT, most=10_000)
    llama = Llama(path, window=32, piece=32, threads=1, watch=lambda node, ask: False)
    assert np.array_equal(tokens, llama.tokens(TEXT)) and len(tokens) > 500
    assert vocabulary.bos == llama.bos == 1
    assert 2 in vocabulary.ends and {1, 2} <= set(vocabulary.controls) and not set(vocabulary.controls) & {5, 270}
    windows = cut(tokens, vocabulary, window=16)
    assert (windows.train[:, 0] == 1).all() and windows.size == 16 and len(windows.held) in range(1, 9)
    together = np.concatenate([windows.train, windows.held])[:, 1:].reshape(-1)
    assert np.array_equal(together, tokens[: len(together)])


@pytest.mark.parametrize("text", ["", "  \n", "too short", "\ud800 half a character" * 30])
def test_text_that_is_none(tmp_path: Path, text: str) -> None:
    path = tiny().write(tmp_path / "a.gguf")
    with pytest.raises(RecipeError, match="text to train on"):
        vocabulary, tokens = tokenised(path, text, most=10_000)
        cut(tokens, vocabulary, window=16)


def test_a_model_that_llamacpp_does_not_load(tmp_path: Path) -> None:
    file = tiny()
    del file.keys["llama.attention.head_count"]
    with pytest.raises(RecipeError, match=r"the tokenizer of a\.gguf cannot be used") as raised:
        tokenised(file.write(tmp_path / "a.gguf"), TEXT, most=100)
    assert any("failed to load" in line for line in raised.value.facts["lines"])


# ----------------------------------------------------------------------------------------------- a teacher's answers


def test_answers_are_cleaned() -> None:
    plain = tuple(range(10, 40))
    given = [
        Written((1, 5), plain),
        Written((1, 6), (*plain, 2)),  # the same, and the end of it said
        Written((1, 7), (*plain[:28], 99, 98)),  # nearly the same
        Written((1, 8), tuple(range(50, 80))),
        Written((1, 9), (10, 11, 12)),
        Written((1, 9), (60, 61) * 15),
        Written((1, 9), (*range(200, 220), 1, *range(220, 230))),
    ]
    kept, why = cleaned(given, VOCABULARY, least=8)
    assert kept == [given[0], given[3]]
    assert why == {"twice": 2, "short": 1, "circles": 1, "control": 1}
    rows = rows_of([Written((1, 5), (7, 8, 2)), Written((1,), (9,))])
    assert rows.tolist() == [[~1, ~5, 7, 8, 2], [~1, 9, ~0, ~0, ~0]]


def test_a_teacher_writes_the_same_again_and_after_a_kill(tmp_path: Path) -> None:
    with open_weights(tiny(layers=1).write(tmp_path / "a.gguf")) as source:
        teacher = load(source).model
    prompts = np.random.default_rng(1).integers(3, 200, (10, 6))
    sampling = Sampling(count=10, tokens=12, together=4)
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()

    def write(folder: Path, *, until: int = 99, key: str = "k") -> list[Written]:
        def progress(done: int, total: int) -> None:
            if done >= until:
                raise KeyboardInterrupt

        return written(teacher, prompts, VOCABULARY, sampling, seed=3, folder=folder, key=key, progress=progress)

    whole = write(folders[0])
    assert len(whole) == 10 and all(0 < len(one.answer) <= 12 for one in whole)
    assert [one.prompt for one in whole] == [tuple(row) for row in prompts.tolist()]
    assert all(2 not in one.answer[:-1] for one in whole)
    with pytest.raises(KeyboardInterrupt):
        write(folders[1], until=8)
    path = folders[1] / "sequences.jsonl"
    path.write_text(path.read_text()[:-30])  # the last line is half
    assert write(folders[1]) == whole
    assert len(path.read_text().splitlines()) == 11 and json.loads(path.read_text().splitlines()[0]) == {"key": "k"}


def test_only_the_likeliest_are_drawn(tmp_path: Path) -> None:
    """A part of the probability so small that one token has it: what the teacher holds for the likeliest."""
    with open_weights(tiny(layers=1).write(tmp_path / "a.gguf")) as source:
        teacher = load(source).model
    prompts = np.random.default_rng(1).integers(3, 200, (3, 6))
    sampling = Sampling(count=3, tokens=5, top_p=1e-6)
    found = written(
        teacher, prompts, Vocabulary(bos=1, ends=(), controls=()), sampling, seed=3, folder=tmp_path, key="",
        progress=lambda done, total: None,
    )  # fmt: skip
    for one in found:
        text = list(one.prompt)
        for token in one.answer:
            with torch.no_grad():
                assert int(teacher(input_ids=torch.tensor([text])).logits[0, -1].argmax()) == token
            text.append(token)
