"""The training loop: seeded, resumable after a kill, and loud where a loss is no number."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pressroom.compress.training._checkpoint import Checkpoint
from pressroom.kernel import RecipeError, this_machine

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pressroom.compress.training._text import Windows

# Where the rate ends, as a share of its highest.
_LAST_RATE = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """How to train: `steps` steps of `batch` windows each, of which `together` are computed at a time (gradients add
    up).

    AdamW at `rate`, which rises over the share `warmup` of the steps and then falls as a cosine to a tenth. Matrices
    decay by `decay`; the norm of all gradients is cut to `clip`. A checkpoint is written every `checkpoint` steps (0:
    never). `half`: matrices are multiplied in bfloat16, weights and sums stay float32.
    """

    steps: int
    batch: int = 4
    rate: float = 5e-5
    warmup: float = 0.1
    decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    checkpoint: int = 25
    half: bool = False
    together: int = 1

    def rate_at(self, step: int) -> float:
        """The rate of a step, counted from 0."""
        rising = max(1, round(self.warmup * self.steps))
        if step < rising:
            return self.rate * (step + 1) / rising
        done = (step - rising) / max(1, self.steps - rising)
        return self.rate * (_LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What a course came to: the loss of every step, the tokens that were seen (again and again, where the text is
    short), the seconds of this process, and the step at which it took up a killed one's work (0: at the beginning)."""

    losses: tuple[float, ...]
    tokens: int
    seconds: float
    resumed: int


def train(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[Tensor], Tensor],
    windows: Windows,
    course: Course,
    *,
    folder: Path | None = None,
    key: str = "",
    before: Callable[[int], None] | None = None,
    after: Callable[[int], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train the parameters in place; `loss` is the mean loss of a batch of windows, int64 (windows, positions).

    `before` and `after` are called around each step with its number, from 0. They may change parameters, but must do so
    by what these are and the number alone: a run that takes up another's work calls them from there on. Checkpoints
    lie in `folder`; one that was written under another `key`, or is damaged, is not taken. Call it within `settled`.

    Raises:
        RecipeError: a loss or gradient is no finite number; it says at which step.
        StoreFullError, StoreError: a checkpoint cannot be written.
    """
    began = time.monotonic()
    matrices = [one for one in parameters if one.ndim > 1]
    others = [one for one in parameters if one.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": course.decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=course.rate)
    kept = Checkpoint(folder, key, parameters, optimizer) if folder is not None and course.checkpoint else None
    losses = kept.load() if kept is not None else []
    first = len(losses)
    if progress is not None:
        progress(first, course.steps)
    device = parameters[0].device
    for step in range(first, course.steps):
        if before is not None:
            before(step)
        for group in optimizer.param_groups:
            group["lr"] = course.rate_at(step)
        rows = torch.from_numpy(windows.batch(step, course.batch, course.seed)).to(device)
        total = 0.0
        for part in rows.split(course.together):  # type: ignore[no-untyped-call]
            with torch.autocast(device.type, torch.bfloat16, enabled=course.half):
                found = loss(part) * (len(part) / len(rows))
            total += float(found.detach())
            if not math.isfinite(total):
                raise _broken("loss", total, step, losses)
            found.backward()  # type: ignore[no-untyped-call]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, course.clip))
        if not math.isfinite(norm):
            raise _broken("norm of the gradients", norm, step, losses)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total)
        if after is not None:
            after(step)
        if kept is not None and (step + 1) % course.checkpoint == 0 and step + 1 < course.steps:
            kept.save(losses)
        if progress is not None:
            progress(step + 1, course.steps)
    seen = course.steps * course.batch * windows.size
    return Trained(losses=tuple(losses), tokens=seen, seconds=time.monotonic() - began, resumed=first)


@contextmanager
def settled(seed: int, threads: int) -> Iterator[None]:
    """Within it the same work gives the same numbers on one machine's processor: so many threads (0: the physical
    cores), and random numbers from the seed. After it all is as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or this_machine().physical_cores)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(before)


def pays_half(device: str) -> bool:
    """Whether the machine multiplies bfloat16 faster than float32."""
    if device != "cpu":
        return True
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _broken(what: str, value: float, step: int, losses: list[float]) -> RecipeError:
    last = f"; the loss was {losses[-1]:.4g} one step before" if losses else ""
    return RecipeError(
        f"the {what} of step {step + 1} is {value}{last}",
        hint="Train at a lower rate, or in float32: precision = 'float32'.",
        step=step + 1,
        loss=str(value),
    )
