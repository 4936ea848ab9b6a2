"""Texts that a teacher writes for its student: sampled, cleaned, and none twice."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

    from pressroom.compress.training._text import Vocabulary

_FILE = "sequences.jsonl"
# Of the runs of four tokens of an answer, how many at least must be different: less is a text that goes in circles.
_GRAM, _LEAST_VARIED = 4, 0.5
# Answers that share so much of their runs of five tokens are one answer said twice.
_SHINGLE, _MOST_ALIKE = 5, 0.7


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a teacher writes: `count` answers of up to `tokens` tokens, `together` at a time, each token drawn at
    `temperature` from the likeliest that have `top_p` of the probability."""

    count: int
    tokens: int
    temperature: float = 0.8
    top_p: float = 0.95
    together: int = 16
    least: int = 8


@dataclass(frozen=True, slots=True)
class Written:
    """What the teacher was given, and what it wrote."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def written(
    teacher: nn.Module,
    prompts: NDArray[np.int64],
    vocabulary: Vocabulary,
    sampling: Sampling,
    *,
    seed: int,
    folder: Path,
    key: str,
    progress: Callable[[int, int], None],
) -> list[Written]:
    """An answer to every prompt (rows of equal length), as the teacher goes on with it. What was written so far lies in
    `folder`, and is taken up under the same key."""
    path = folder / _FILE
    found = _taken_up(path, key)[: len(prompts)]
    if len(found) < len(prompts):  # those that were drawn together are drawn together again
        found = found[: len(found) // sampling.together * sampling.together]
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"key": key}) + "\n")
        for one in found:
            file.write(_line(one))
        file.flush()
        progress(len(found), len(prompts))
        for start in range(len(found), len(prompts), sampling.together):
            part = prompts[start : start + sampling.together]
            for prompt, answer in zip(part, _sampled(teacher, part, vocabulary, sampling, [seed, start]), strict=True):
                one = Written(tuple(prompt.tolist()), tuple(answer))
                file.write(_line(one))
                found.append(one)
            file.flush()
            progress(len(found), len(prompts))
    return found


def cleaned(
    sequences: Iterable[Written], vocabulary: Vocabulary, *, least: int
) -> tuple[list[Written], dict[str, int]]:
    """Those that are fit to learn from, and how many are not, by the reason: too short, with control tokens in the
    text, going in circles, or an answer that is there already (or nearly so: 70 % of its runs of five tokens)."""
    kept: list[Written] = []
    why: Counter[str] = Counter()
    shingles: dict[tuple[int, ...], list[int]] = defaultdict(list)
    sizes: list[int] = []
    for one in sequences:
        text = one.answer[:-1] if one.answer and one.answer[-1] in vocabulary.ends else one.answer
        reason = _unfit(text, vocabulary, least)
        runs = set(_runs(text, _SHINGLE)) or {text}
        if not reason:
            shared = Counter(number for run in runs for number in shingles.get(run, ()))
            if any(count / (len(runs) + sizes[number] - count) >= _MOST_ALIKE for number, count in shared.items()):
                reason = "twice"
        if reason:
            why[reason] += 1
            continue
        for run in runs:
            shingles[run].append(len(kept))
        sizes.append(len(runs))
        kept.append(one)
    return kept, dict(why)


def rows_of(sequences: Sequence[Written]) -> NDArray[np.int64]:
    """As windows to train on: the answer's tokens, and the complements of what is read and is no answer: the prompt,
    and what fills up the shorter rows."""
    size = max(len(one.prompt) + len(one.answer) for one in sequences)
    found = np.full((len(sequences), size), ~0, np.int64)
    for row, one in zip(found, sequences, strict=True):
        row[: len(one.prompt)] = ~np.array(one.prompt, np.int64)
        row[len(one.prompt) : len(one.prompt) + len(one.answer)] = one.answer
    return found


def _unfit(text: tuple[int, ...], vocabulary: Vocabulary, least: int) -> str:
    if len(text) < least:
        return "short"
    if not set(vocabulary.controls).isdisjoint(text):
        return "control"
    runs = list(_runs(text, _GRAM))
    return "circles" if len(set(runs)) < _LEAST_VARIED * len(runs) else ""


def _runs(text: tuple[int, ...], size: int) -> Iterator[tuple[int, ...]]:
    return (text[at : at + size] for at in range(len(text) - size + 1))


def _sampled(
    teacher: nn.Module, prompts: NDArray[np.int64], vocabulary: Vocabulary, sampling: Sampling, seed: list[int]
) -> list[list[int]]:
    device = next(teacher.parameters()).device
    random = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    ends = torch.tensor(vocabulary.ends, dtype=torch.int64)
    done = torch.zeros(len(prompts), dtype=torch.bool)
    tokens, cache = torch.from_numpy(prompts).to(device), None
    answers = []
    with torch.no_grad():
        for _ in range(sampling.tokens):
            found = teacher(input_ids=tokens, past_key_values=cache, use_cache=True)
            cache = found.past_key_values
            drawn = torch.multinomial(_shares(found.logits[:, -1].float().cpu(), sampling), 1, generator=random)[:, 0]
            answers.append(torch.where(done, -1, drawn))
            done |= torch.isin(drawn, ends)
            if done.all():
                break
            tokens = drawn[:, None].to(device)
    return [[token for token in row if token >= 0] for row in torch.stack(answers, dim=1).tolist()]


def _shares(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The probabilities that are drawn from."""
    shares, order = torch.softmax(logits / sampling.temperature, dim=-1).sort(dim=-1, descending=True, stable=True)
    # The first that brings the sum to top_p is among them.
    shares[shares.cumsum(dim=-1) - shares >= sampling.top_p] = 0
    return torch.zeros_like(logits).scatter_(-1, order, shares)


def _line(one: Written) -> str:
    return json.dumps({"prompt": one.prompt, "answer": one.answer}) + "\n"


def _taken_up(path: Path, key: str) -> list[Written]:
    if not path.is_file():
        return []
    found: list[Written] = []
    with path.open(encoding="utf-8") as file:
        try:
            if json.loads(file.readline()).get("key") != key:
                return []
            for line in file:
                given = json.loads(line)
                found.append(Written(tuple(given["prompt"]), tuple(given["answer"])))
        except (ValueError, KeyError):
            pass  # the last line of a killed run is half a line
    return found
