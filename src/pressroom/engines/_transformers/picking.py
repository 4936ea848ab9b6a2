"""Which token comes next: OpenAI's parameters and those engines have beside them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Tensor = torch.Tensor
# Tokens looked at before all of them are sorted: enough for nearly every distribution of a trained model.
_LIKELIEST = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How to pick. `temperature` 0 takes the likeliest. In this order: penalties and biases, temperature, `top_k`,
    `top_p` of what is left, `min_p` times the likeliest. Frequency and presence are of the answer, repetition of the
    prompt too. `logprobs` is how many of the likeliest tokens to report (None: nothing)."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed: tuple[int, ...] | None = None
    seed: int | None = None
    logprobs: int | None = None

    @property
    def alters(self) -> bool:
        """Whether the logits are changed before anything is picked."""
        penalties = (self.frequency_penalty, self.presence_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)
        return penalties or bool(self.logit_bias) or self.allowed is not None


@dataclass(slots=True)
class Picked:
    """A token, and its log-probability with those of the likeliest where asked for, of the model as it is."""

    token: int
    logprob: float | None = None
    likeliest: list[tuple[int, float]] = field(default_factory=list)


class Picker:
    """The state of one answer: its chance, and what its tokens so far do to the next."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self.sampling = sampling
        #: Tokens that may not come now (the end, before `min_tokens`).
        self.banned: tuple[int, ...] = ()
        self.grammar: Any = None
        self._chance = random.Random(sampling.seed)  # noqa: S311  not a secret
        self._prompt = prompt if sampling.repetition_penalty != 1.0 else ()
        self._counts: Tensor | None = None
        self._seen: Tensor | None = None

    def begin_at(self, number: int) -> None:
        """Draw for the answer of this number among several of one seed: they would all be the same."""
        if number:
            self._chance = random.Random(f"{self.sampling.seed}/{number}")  # noqa: S311

    def chance(self) -> float:
        """A number from 0 to 1 for the next token."""
        return self._chance.random()

    def said(self, token: int) -> None:
        """The token has become part of the answer."""
        if self._counts is not None:
            self._counts[token] += 1
        if self._seen is not None:
            self._seen[token] = True

    @property
    def plain(self) -> bool:
        """Whether the likeliest token of the model is the answer."""
        return not (self.sampling.temperature or self.alters)

    @property
    def alters(self) -> bool:
        return self.sampling.alters or bool(self.banned) or self.grammar is not None

    def alter(self, logits: Tensor) -> None:
        """Penalties, biases and what may not come, in place; `logits` [vocabulary] in float32."""
        sampling = self.sampling
        if sampling.repetition_penalty != 1.0:
            if self._seen is None:
                self._seen = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
                self._seen[torch.tensor(self._prompt, dtype=torch.long, device=logits.device)] = True
            punished = torch.where(
                logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty
            )
            logits.copy_(torch.where(self._seen, punished, logits))
        if sampling.frequency_penalty or sampling.presence_penalty:
            if self._counts is None:
                self._counts = torch.zeros(len(logits), device=logits.device)
            logits -= sampling.frequency_penalty * self._counts + sampling.presence_penalty * (self._counts > 0)
        if sampling.logit_bias:
            index = torch.tensor(list(sampling.logit_bias), device=logits.device)
            logits[index] += torch.tensor(list(sampling.logit_bias.values()), device=logits.device)
        if sampling.allowed is not None:
            index = torch.tensor(sampling.allowed, device=logits.device)
            allowed = torch.full_like(logits, float("-inf"))
            allowed[index] = logits[index]
            logits.copy_(allowed)
        if self.banned:
            logits[torch.tensor(self.banned, device=logits.device)] = float("-inf")
        if self.grammar is not None:
            self.grammar.mask(logits)


def pick(logits: Tensor, pickers: Sequence[Picker]) -> list[Picked | None]:
    """The next token of each row of `logits` [rows, vocabulary]; None where a row has no finite number to go by."""
    if all(picker.plain and picker.sampling.logprobs is None for picker in pickers):
        best, at = logits.max(dim=-1)
        usable = torch.isfinite(best).tolist()
        return [Picked(token) if good else None for token, good in zip(at.tolist(), usable, strict=True)]
    # A copy, also where it is float32 already: it is altered in place.
    logits = logits.to(torch.float32, copy=True)
    reports = [_report(logits[row], picker.sampling.logprobs) for row, picker in enumerate(pickers)]
    for row, picker in enumerate(pickers):
        if picker.alters:
            picker.alter(logits[row])
    best, at = logits.max(dim=-1)
    usable = torch.isfinite(best).tolist()
    picked: list[Picked | None] = []
    for row, (token, picker) in enumerate(zip(at.tolist(), pickers, strict=True)):
        if not usable[row]:
            picked.append(None)
            continue
        if picker.sampling.temperature:
            token = _drawn(logits[row], picker.sampling, picker.chance())
        found = Picked(token)
        report = reports[row]
        if report is not None:
            every, found.likeliest = report
            found.logprob = float(every[token])
        picked.append(found)
    return picked


def _report(logits: Tensor, most: int | None) -> tuple[Tensor, list[tuple[int, float]]] | None:
    if most is None:
        return None
    every = torch.log_softmax(logits, dim=-1)
    likeliest = torch.topk(every, min(most, len(every))) if most else None
    if likeliest is None:
        return every, []
    return every, list(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True))


def _drawn(logits: Tensor, sampling: Sampling, chance: float) -> int:
    """A token by chance: the place of `chance` in the row of their probabilities."""
    logits = logits / sampling.temperature
    if not sampling.top_k and sampling.top_p >= 1 and not sampling.min_p:
        return _at(torch.softmax(logits, dim=-1), chance)
    probabilities = torch.softmax(logits, dim=-1)
    few = min(sampling.top_k or _LIKELIEST, len(logits))
    values, tokens = torch.topk(probabilities, few)
    if not sampling.top_k and not _enough(values, sampling):
        values, tokens = torch.sort(probabilities, descending=True, stable=True)
    if sampling.top_p < 1:
        share = values / values.sum() if sampling.top_k else values
        # The token that crosses the bound is kept.
        keep = max(1, int((torch.cumsum(share, dim=-1) - share < sampling.top_p).sum()))
        values, tokens = values[:keep], tokens[:keep]
    if sampling.min_p:
        keep = max(1, int((values >= sampling.min_p * values[0]).sum()))
        values, tokens = values[:keep], tokens[:keep]
    return int(tokens[_at(values, chance)])


def _enough(values: Tensor, sampling: Sampling) -> bool:
    """Whether what `top_p` and `min_p` let through is among these likeliest ones."""
    if sampling.min_p and float(values[-1]) < sampling.min_p * float(values[0]):
        return True
    return sampling.top_p < 1 and float(values.sum()) >= sampling.top_p


def _at(probabilities: Tensor, chance: float) -> int:
    sums = torch.cumsum(probabilities.to(torch.float64), dim=-1)
    found = int(
        torch.searchsorted(
            sums, torch.tensor(chance * float(sums[-1]), dtype=torch.float64, device=sums.device), right=True
        )
    )
    found = min(found, len(sums) - 1)
    # A sum that rounds down at the very end must not reach a token that cannot come.
    while found and not probabilities[found] > 0:
        found -= 1
    return found
