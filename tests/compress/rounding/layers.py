"""Layers made up for the tests: weights, and the hessian of inputs that are correlated as those of real layers are."""

from __future__ import annotations

from typing import Any

import numpy as np


def layer(rows: int, columns: int, *, tokens: int = 2048, seed: int = 0, text: int = 0) -> tuple[Any, Any]:
    """Weights (rows, columns), and the mean of x xᵀ over `tokens` inputs whose columns have much in common and differ
    in size. With another `text` they are other inputs of the same layer."""
    generator = np.random.default_rng(seed)
    weights = generator.standard_normal((rows, columns)).astype(np.float32) * 0.05
    few = max(1, columns // 8)
    mixing = generator.standard_normal((few, columns)) / np.sqrt(few)
    sizes = np.exp(0.7 * generator.standard_normal(columns))
    generator = np.random.default_rng((seed, text))
    inputs = generator.standard_normal((tokens, few)) @ mixing + 0.3 * generator.standard_normal((tokens, columns))
    inputs *= sizes
    return weights, (inputs.T @ inputs / tokens).astype(np.float32)


def error(weights: Any, values: Any, hessian: Any) -> float:
    """The definition of the error, in float64."""
    w, e, h = weights.astype(np.float64), weights.astype(np.float64) - values, hessian.astype(np.float64)
    return float(np.trace(e @ h @ e.T) / np.trace(w @ h @ w.T))


def inverse_factor(hessian: Any, damp: float) -> Any:
    """The upper triangle U with Uᵀ U = H⁻¹, as the papers have it, in float64."""
    damped = hessian.astype(np.float64) + damp * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    return np.linalg.cholesky(np.linalg.inv(damped)).T
