"""Training a model's weights, as all steps of a recipe that train do it: one loop, one way to cut a text.

vocabulary, tokens = tokenised(model, text)          # as llama.cpp does
windows = cut(tokens, vocabulary, window=256)
done = train(parameters, loss, windows, course, folder=folder, key=key)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.compress.training._adapters import Adapters, pack
    from pressroom.compress.training._grids import Grids
    from pressroom.compress.training._loop import Course, Trained, settled, train
    from pressroom.compress.training._masks import Masks, shares, zeros
    from pressroom.compress.training._measuring import Measured, logits_of, measured
    from pressroom.compress.training._objective import Mix
    from pressroom.compress.training._sequences import Sampling, Written, cleaned, rows_of, written
    from pressroom.compress.training._step import TrainingStep, floating, pattern_wrong, told
    from pressroom.compress.training._student import TeachingStep
    from pressroom.compress.training._text import Vocabulary, Windows, cut, tokenised

__all__ = [
    "Adapters",
    "Course",
    "Grids",
    "Masks",
    "Measured",
    "Mix",
    "Sampling",
    "TeachingStep",
    "Trained",
    "TrainingStep",
    "Vocabulary",
    "Windows",
    "Written",
    "cleaned",
    "cut",
    "floating",
    "logits_of",
    "measured",
    "pack",
    "pattern_wrong",
    "rows_of",
    "settled",
    "shares",
    "tokenised",
    "told",
    "train",
    "written",
    "zeros",
]

__getattr__ = _lazily(
    __name__,
    {
        "Adapters": "_adapters",
        "Course": "_loop",
        "Grids": "_grids",
        "Masks": "_masks",
        "Measured": "_measuring",
        "Mix": "_objective",
        "Sampling": "_sequences",
        "TeachingStep": "_student",
        "Trained": "_loop",
        "TrainingStep": "_step",
        "Vocabulary": "_text",
        "Windows": "_text",
        "Written": "_sequences",
        "cleaned": "_sequences",
        "cut": "_text",
        "floating": "_step",
        "logits_of": "_measuring",
        "measured": "_measuring",
        "pack": "_adapters",
        "pattern_wrong": "_step",
        "rows_of": "_sequences",
        "settled": "_loop",
        "shares": "_masks",
        "tokenised": "_text",
        "told": "_step",
        "train": "_loop",
        "written": "_sequences",
        "zeros": "_masks",
    },
)
