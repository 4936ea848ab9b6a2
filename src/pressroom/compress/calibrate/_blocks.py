"""Which blocks of a model matter least on a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pressroom.compress.calibrate._run import answers, checked, must_have_llama
from pressroom.kernel import this_machine


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """`influence` of every block: 1 - the cosine between what goes in and what comes out, the mean over `tokens`
    positions (arXiv 2403.03853). `dropped`: which blocks are to go, in the order in which they were chosen, each with
    the mean divergence KL(whole model, model without it and those before it) on the same tokens."""

    influence: tuple[float, ...]
    dropped: tuple[tuple[int, float], ...]
    tokens: int


def least_blocks(
    model: Path,
    text: str,
    *,
    layers: int,
    count: int,
    by: Literal["influence", "loss"],
    tokens: int,
    shortlist: int,
    window: int = 512,
    threads: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Blocks:
    """Choose `count` of a GGUF model's `layers` blocks to go without.

    "influence": those that change least what runs through them. "loss": one after the other that without which the
    model's probabilities change least, of the `shortlist` with the least influence. Nothing is written; a model without
    a block is computed by skipping it. The same input and threads give the same result.

    Raises:
        RecipeError: the text is empty or shorter than a window, llama.cpp does not load the model or does not show its
            blocks. EngineError: the process died. MissingDependencyError: llama.cpp is not installed.
    """
    data = checked(text, tokens=tokens, window=window)
    must_have_llama()
    task: dict[str, Any] = {
        "model": str(model.absolute()),
        "layers": layers,
        "count": count,
        "by": by,
        "tokens": tokens // window * window,
        "window": window,
        "shortlist": shortlist,
        "threads": threads or this_machine().physical_cores,
    }
    influence: tuple[float, ...] = ()
    dropped: list[tuple[int, float]] = []
    read = 0
    for answer in answers(task, data, child="_blocks_child"):
        if "influence" in answer:
            influence, read = tuple(answer["influence"]), int(answer["tokens"])
        if "dropped" in answer:
            dropped.append((int(answer["dropped"]), float(answer["kl"])))
        if on_progress is not None and "done" in answer:
            on_progress(int(answer["done"]), int(answer["total"]))
    return Blocks(influence=influence, dropped=tuple(dropped), tokens=read)
