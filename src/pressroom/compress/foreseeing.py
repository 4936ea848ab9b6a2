"""What a recipe will make of a file, before any work: the shapes and types after each step, and what cannot be done."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pressroom.compress.recipe import Recipe, out_of_order
from pressroom.compress.steps.base import Step
from pressroom.kernel import RecipeError

if TYPE_CHECKING:
    from pressroom.compress.weights import Plan, Weights


def planned(source: Weights, recipe: Recipe) -> Plan:
    """What the recipe makes of the file, before any work. Where a step cannot say what it will make, the plan is that
    of the last file that is known.

    Raises:
        RecipeError: the steps are in an order that cannot work; a step cannot be done; the recipe names tensors that
            are not there or formats that do not fit, all of them; or nothing changes.
        MissingDependencyError: a library is missing that an extra installs.
    """
    return foreseen(source, recipe)[0]


def foreseen(source: Weights, recipe: Recipe) -> tuple[Plan, tuple[int, ...]]:
    """The plan, and the sizes of the files that the parts of the recipe will write, as far as they are known.

    Raises:
        RecipeError, MissingDependencyError: as `planned`.
    """
    wrong = out_of_order(recipe.steps)
    if wrong:
        raise RecipeError(
            "; ".join(wrong),
            hint="The order is: structure, training, low rank, sparsity, numbers.",
            problems=wrong,
        )
    from pressroom.compress.numbers import number_format
    from pressroom.compress.weights import check

    plan: Plan | None = None
    sizes = []
    for step in recipe.rounds:
        number_format(step.to)  # an unknown one is said before what it does not fit
    with tempfile.TemporaryDirectory(prefix="pressroom-") as folder, ExitStack() as opened:
        now: Weights | None = source
        first = 1
        for number, part in enumerate(recipe.parts, start=1):
            if now is None:
                break
            if isinstance(part, Recipe):
                plan = rounding_plan(now, part, must_change=len(recipe.parts) == 1, first=first)
                formats = {one.tensor.name: one.format.name for one in plan.changed if one.format is not None}
                shapes: dict[str, str | tuple[str, tuple[int, ...]]] = {
                    name: (formats[name], tensor.shape) if name in formats else name
                    for name, tensor in now.tensors.items()
                }
                now = opened.enter_context(_sketched(now, Path(folder) / f"{number}.gguf", shapes, {}))
            else:
                now = _after(now, part, Path(folder) / f"{number}.gguf", opened)
                plan = None if now is None else check(now, {})
            first += len(part.steps) if isinstance(part, Recipe) else 1
            if now is not None:
                sizes.append(now.size)
        if plan is None:
            plan = check(source, {})
    return dataclasses.replace(plan, before=source.size), tuple(sizes)


def rounding_plan(source: Weights, recipe: Recipe, *, must_change: bool, first: int = 1) -> Plan:
    """What a recipe that only rounds makes of the file; its steps are counted from `first`. Raises RecipeError."""
    from pressroom.compress.weights import Role, check

    wanted: dict[str, str] = {}
    idle = []
    compressible = [tensor for tensor in source.tensors.values() if tensor.role.compressible]
    for number, step in enumerate(recipe.rounds, start=first):
        found = [tensor.name for tensor in compressible if step.matches(tensor.name)]
        wanted |= dict.fromkeys(found, step.to)
        if not found:
            idle.append(f"step {number} ({step.targets})")
    if idle:
        names = [tensor.name for tensor in compressible]
        raise RecipeError(
            f"no tensor that can be compressed is meant by {', '.join(idle)}",
            hint=f"There are {', '.join(names[:4])}, …: `press show` lists them all." if names else "",
            steps=idle,
        )
    if recipe.embedding:
        ends = source.of_role(Role.EMBEDDING, Role.HEAD)
        wanted |= {tensor.name: recipe.embedding for tensor in ends}
    plan = check(source, wanted)
    if must_change and not plan.changed:
        raise RecipeError(
            f"{source.called} is as the recipe wants it already: nothing would change",
            hint="Ask for another format.",
        )
    return plan


def _after(now: Weights, step: Step, path: Path, opened: ExitStack) -> Weights | None:
    """What the file will be behind a step; None where it cannot be known."""
    with naming(step):
        step.check(now)
        outline = step.outline(now)
    if outline is None:
        return None
    return opened.enter_context(_sketched(now, path, outline.tensors, outline.metadata))


@contextmanager
def _sketched(source: Weights, path: Path, tensors: object, metadata: object) -> Iterator[Weights]:
    from pressroom.compress.weights import open_weights, sketch

    sketch(path, source, tensors, metadata=metadata)  # type: ignore[arg-type]
    with open_weights(path, called=source.called) as found:
        yield found


@contextmanager
def naming(step: Step) -> Iterator[None]:
    """Errors say which step they are about."""
    try:
        yield
    except RecipeError as error:
        if error.message.startswith(step.method):
            raise
        raise RecipeError(f"{step.method}: {error.message}", hint=error.hint, **error.facts) from error
