"""The kinds of steps that a recipe can have besides rounding: one file each in `backends/`.

found = step("prune-weights", {"ratio": 0.5})     # RecipeError with all that is wrong
found.check(source)                                # before the work
report = found.run(source, target, job)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.compress.steps.base import Job, Outline, Report, Stage, Step
from pressroom.kernel.lazy import lazily as _lazily

if TYPE_CHECKING:
    from pressroom.compress.steps._loading import Kind, step, step_kinds

__all__ = ["Job", "Kind", "Outline", "Report", "Stage", "Step", "step", "step_kinds"]

__getattr__ = _lazily(__name__, {"Kind": "_loading", "step": "_loading", "step_kinds": "_loading"})
