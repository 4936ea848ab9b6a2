"""A recipe carried out: from one version in the registry to another, by way of a file that is read again."""

from __future__ import annotations

import importlib.util
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pressroom.compress.chain import Chain
from pressroom.compress.foreseeing import foreseen, planned
from pressroom.compress.intermediates import Done, Intermediates, keys
from pressroom.compress.recipe import Recipe, Step
from pressroom.kernel import MissingDependencyError, RecipeError, RefError, Workspace, is_name
from pressroom.registry.base import Figure, Version

if TYPE_CHECKING:
    from pressroom.compress.tensors import Kept, TensorReport
    from pressroom.compress.weights import Plan

__all__ = ["Made", "compress", "planned"]

_FOLDER = "compress"


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A version that a recipe made: the plan of its file, a report of each tensor that the last rounding changed, of
    each other step, and the seconds it took."""

    version: Version
    plan: Plan
    tensors: tuple[TensorReport, ...]
    calibration_digest: str
    seconds: float
    steps: tuple[Done, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "ref": f"{self.version.name}:{self.version.number}",
            "digest": self.version.digest,
            "bytes": self.plan.size,
            "bytes_before": self.plan.before,
            "bits_per_weight": round(self.plan.bits_per_weight, 4),
            "covered": round(self.plan.covered, 4),
            "types": {name: list(each) for name, each in self.plan.types.items()},
            "seconds": round(self.seconds, 1),
            "steps": [one.as_dict() for one in self.steps],
            "tensors": [
                {
                    "name": one.name,
                    "format": one.format,
                    "bytes": one.nbytes,
                    "error": one.error,
                    "nearest": one.nearest,
                    "fallback": one.fallback,
                }
                for one in self.tensors
            ],
        }


def compress(
    workspace: Workspace,
    version: Version,
    recipe: Recipe,
    *,
    name: str,
    text: str,
    text_digest: str = "",
    kept: Kept | None = None,
) -> Made:
    """Carry the recipe out on a version of GGUF weights and register what comes of it as `name`, with its parent.

    `text` is the calibration text, looked at where a step wants it. What is registered is the file as it was read again
    from the disk: every tensor in the type that was asked for, with the bytes that were made. The files between steps
    are kept until it is registered: a run that is killed, or fails, leaves what is done to the next one with the same
    version, recipe and text. Says how far it is as Progress events, and what the user should know as Note events.
    `kept` gives tensors of the version that were rounded already, as a search has them.

    Raises:
        RecipeError: it cannot be done; said before the work where it can be known.
        StoreFullError: there is no room. Nothing is registered; finished steps are kept for the next run.
        MissingDependencyError: a library is missing that an extra installs.
    """
    from pressroom.compress.weights import open_weights
    from pressroom.registry import Registry, pull

    began = time.monotonic()
    if version.format != "gguf":
        raise RecipeError(
            f"{version.name}:{version.number} is {version.format}, and only GGUF weights are compressed so far",
            hint="Pull a GGUF file of the model.",
            ref=str(version.ref),
        )
    if not is_name(name):
        raise RefError(
            f"{name!r} cannot name a version",
            hint="Names use letters, digits, '.', '_' and '-', and start with a letter or a digit: --as NAME.",
            asked=name,
        )
    registry = Registry(workspace)
    folder = workspace.path(_FOLDER)
    with workspace.lock("compress", purpose=f"compress {version.name}:{version.number}", wait_s=None):
        for left in folder.glob("*.gguf"):  # of one that was killed
            left.unlink()
        origin = registry.materialise(version)
        with open_weights(origin, called=f"{version.name}:{version.number}") as source:
            plan, sizes = foreseen(source, recipe)
            _must_have_torch(plan, recipe)
        between = Intermediates(folder / "steps", keys(version.digest, recipe, text))
        chain = Chain(workspace, version, origin, recipe, between, text=text, folder=folder, kept=kept)
        target = folder / f"{name.replace('/', '-')}.gguf"
        try:
            plan = chain.carry_out(sizes, target)
            made = pull(
                workspace,
                str(target),
                name=name,
                kind=chain.kind,
                parent=str(version.ref),
                tags={"recipe": recipe.name or _called(recipe), "recipe.json": json.dumps(recipe.as_dict())},
            )
        finally:
            with suppress(OSError):
                target.unlink(missing_ok=True)
        registry.add_figures(made.ref, [*chain.figures(), *_figures(plan, chain.reports, text_digest)])
        between.remove()
    return Made(
        version=registry.get(made.ref),
        plan=plan,
        tensors=tuple(chain.reports),
        calibration_digest=chain.calibration_digest,
        seconds=time.monotonic() - began,
        steps=tuple(chain.done),
    )


def _called(recipe: Recipe) -> str:
    """A word for a recipe without a name."""
    first = recipe.steps[0]
    return first.to if isinstance(first, Step) else first.method


def _must_have_torch(plan: Plan, recipe: Recipe) -> None:
    """Said before a text is read for minutes. Raises MissingDependencyError."""
    changed = [one.tensor.name for one in plan.changed]
    second_order = any(recipe.rounding_of(name) == "gptq" for name in changed)
    if second_order and recipe.calibrates and importlib.util.find_spec("torch") is None:
        raise MissingDependencyError(
            "rounding with what enters a layer in mind needs PyTorch, which is not installed",
            hint="Install it: pip install 'pressroom[compress]'; or round plainly: --rounding nearest",
            missing="torch",
        )


def _figures(plan: Plan, reports: list[TensorReport], text_digest: str) -> list[Figure]:
    now = time.time()
    found = []
    if plan.wanted:
        found.append(
            Figure(
                name="compressed_share",
                value=round(plan.covered, 6),
                how="share of the bytes of tensors, before they were rounded, that the recipe names a format for",
                at=now,
            )
        )
    known = [one.error for one in reports if one.error is not None]
    if known:
        found.append(
            Figure(
                name="layer_error",
                value=round(sum(known) / len(known), 8),
                how=f"mean over {len(known)} linear layers of the share of their output, squared, that is lost on the "
                f"calibration text{f' {text_digest}' if text_digest else ''}",
                at=now,
            )
        )
    return found
