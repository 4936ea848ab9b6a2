"""A router for copies of one feed-forward, which give what the one gives, whichever of them are taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pressroom.compress.experts._grouping import centres_of
from pressroom.compress.experts.base import Loads, loads_of

if TYPE_CHECKING:
    from pressroom.compress.experts.base import Floats


def copies_router(inputs: Floats, experts: int, used: int, *, seed: int = 0) -> tuple[Floats, Loads]:
    """(experts, width), and the loads on these inputs (positions, width): each expert for inputs of one direction, by
    k-means with clusters of one size, so that training begins from experts that see different things, and all of them
    something. The logits have a spread of 1.
    """
    inputs = inputs.astype(np.float32)
    router = centres_of(inputs, experts, seed=seed)
    router -= router.mean(axis=0)
    router /= max(float((inputs @ router.T).std()), 1e-30)
    best = np.argsort(-(inputs @ router.T), axis=1)[:, :used]
    shares = np.bincount(best.ravel(), minlength=experts) / len(inputs)
    return router.astype(np.float32), loads_of(shares)
