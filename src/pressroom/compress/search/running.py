"""A search on a version of the registry: calibrated, searched, and turned into a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pressroom.compress.calibrate import calibrate
from pressroom.compress.recipe import CalibrationText, Recipe
from pressroom.compress.search._recipe import recipe_of
from pressroom.compress.search.base import Goal, Tried
from pressroom.compress.search.searching import Search, Tools, must_be_possible
from pressroom.compress.weights import Weights, open_weights
from pressroom.kernel import Note, Progress, RecipeError, Workspace
from pressroom.registry.base import Version

_FOLDER = "compress"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a search found: the recipe of the best file, that file's figures, and all that were tried."""

    recipe: Recipe
    best: Tried
    tried: tuple[Tried, ...]
    search: Search


def possible(source: Weights, goal: Goal) -> None:
    """Say before any work what cannot be done. Raises RecipeError, MissingDependencyError."""
    from pressroom.compress.rounding import needs_torch

    must_be_possible(source, goal)
    needs_torch()


@contextmanager
def searched(
    workspace: Workspace,
    version: Version,
    model: Path,
    goal: Goal,
    *,
    calibration: CalibrationText,
    text: str,
    text_digest: str,
    tools: Callable[[], AbstractContextManager[Tools]],
) -> Iterator[Outcome]:
    """Search for the best file within the goal. While the context is open the rounded tensors are at hand; what was
    learnt of the model stays afterwards, for the next goal.

    Raises:
        RecipeError: the goal cannot be kept; it says what the nearest is.
    """
    if version.format != "gguf":
        raise RecipeError(
            f"{version.name}:{version.number} is {version.format}, and only GGUF weights are searched",
            hint="Pull a GGUF file of the model.",
            ref=str(version.ref),
        )
    called = f"{version.name}:{version.number}"

    def progress(done: int, total: int) -> None:
        workspace.events.emit(Progress("calibrating", done, total, "windows"))

    with open_weights(model, called=called) as source:
        possible(source, goal)
        with workspace.lock("compress", purpose=f"search {called}", wait_s=None):
            seen = calibrate(
                source.path,
                text,
                tokens=calibration.tokens,
                folder=workspace.path(_FOLDER),
                threads=workspace.settings.engines.threads,
                model_digest=version.digest,
                on_progress=progress,
                on_warning=lambda warning: workspace.events.emit(Note(warning)),
            )
            key = f"{version.digest} {text_digest} {calibration.tokens}"
            with tools() as found:
                search = Search(source, seen, found, workspace.path(_FOLDER), key=key)
                best, tried = search.run(goal)
        recipe = recipe_of(best.formats, name=goal.name, calibration=calibration)
        yield Outcome(recipe=recipe, best=best, tried=tuple(tried), search=search)
        search.done()
