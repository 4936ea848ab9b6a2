"""A recipe carried out: from one version in the registry to another, by way of a file that is read again."""

from __future__ import annotations

import importlib.util
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pressroom.compress.recipe import Recipe
from pressroom.kernel import MissingDependencyError, Note, Progress, RecipeError, RefError, Workspace, is_name
from pressroom.registry.base import Figure, Version

if TYPE_CHECKING:
    from pressroom.compress.calibrate import Calibration
    from pressroom.compress.tensors import Kept, TensorReport
    from pressroom.compress.weights import Plan, Planned, Weights

_FOLDER = "compress"


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A version that a recipe made: the plan of its file, a report of each tensor that changed, the seconds it took."""

    version: Version
    plan: Plan
    tensors: tuple[TensorReport, ...]
    calibration_digest: str
    seconds: float

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


def planned(source: Weights, recipe: Recipe) -> Plan:
    """What the recipe makes of the file, before any work.

    Raises:
        RecipeError: it names tensors that are not there or formats that do not fit, all of them; or nothing changes.
    """
    from pressroom.compress.numbers import number_format
    from pressroom.compress.weights import Role, check

    wanted: dict[str, str] = {}
    idle = []
    compressible = [tensor for tensor in source.tensors.values() if tensor.role.compressible]
    for number, step in enumerate(recipe.steps, start=1):
        number_format(step.to)  # an unknown one is said before what it does not fit
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
        number_format(recipe.embedding)
        ends = source.of_role(Role.EMBEDDING, Role.HEAD)
        wanted |= {tensor.name: recipe.embedding for tensor in ends}
    plan = check(source, wanted)
    if not plan.changed:
        raise RecipeError(
            f"{source.called} is as the recipe wants it already: nothing would change",
            hint="Ask for another format.",
        )
    return plan


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

    `text` is the calibration text, looked at where the recipe rounds to less than 16 bits. What is registered is the
    file as it was read again from the disk: every tensor in the type that was asked for, with the bytes that were made.
    Says how far it is as Progress events. `kept` gives tensors that were rounded already, as a search has them.

    Raises:
        RecipeError: it cannot be done; said before the work where it can be known.
        StoreFullError: there is no room. Nothing is registered or left behind.
        MissingDependencyError: a library is missing that an extra installs.
    """
    from pressroom.compress.tensors import Rounding
    from pressroom.compress.weights import Changed, open_weights, write
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
    with (
        workspace.lock("compress", purpose=f"compress {version.name}:{version.number}", wait_s=None),
        open_weights(registry.materialise(version), called=f"{version.name}:{version.number}") as source,
    ):
        for left in folder.glob("*.gguf"):  # of one that was killed
            left.unlink()
        plan = planned(source, recipe)
        _must_have_torch(plan, recipe)
        calibration = _calibrated(workspace, version, source, plan, recipe, text) if recipe.calibrates else None
        work = Rounding(workspace, source, plan, recipe, calibration, kept)
        changed = {one.tensor.name: Changed(_format(one), work.of(one)) for one in plan.changed}
        target = folder / f"{name.replace('/', '-')}.gguf"
        try:
            write(target, source, changed)
            work.compare(target)
            made = pull(
                workspace,
                str(target),
                name=name,
                kind="quantised",
                parent=str(version.ref),
                tags={"recipe": recipe.name or recipe.steps[0].to},
            )
        finally:
            with suppress(OSError):
                target.unlink(missing_ok=True)
    registry.add_figures(made.ref, _figures(plan, work.reports, text_digest))
    return Made(
        version=registry.get(made.ref),
        plan=plan,
        tensors=tuple(work.reports),
        calibration_digest="" if calibration is None else calibration.text_digest,
        seconds=time.monotonic() - began,
    )


def _format(one: Planned) -> Any:
    assert one.format is not None
    return one.format


def _must_have_torch(plan: Plan, recipe: Recipe) -> None:
    """Said before a text is read for minutes. Raises MissingDependencyError."""
    second_order = any(recipe.rounding_of(one.tensor.name) == "gptq" for one in plan.changed)
    if second_order and recipe.calibrates and importlib.util.find_spec("torch") is None:
        raise MissingDependencyError(
            "rounding with what enters a layer in mind needs PyTorch, which is not installed",
            hint="Install it: pip install 'pressroom[compress]'; or round plainly: --rounding nearest",
            missing="torch",
        )


def _calibrated(
    workspace: Workspace, version: Version, source: Weights, plan: Plan, recipe: Recipe, text: str
) -> Calibration:
    from pressroom.compress.calibrate import calibrate

    second_order = any(recipe.rounding_of(one.tensor.name) == "gptq" for one in plan.changed)

    def progress(done: int, total: int) -> None:
        workspace.events.emit(Progress("calibrating", done, total, "windows"))

    return calibrate(
        source.path,
        text,
        tokens=recipe.calibration.tokens,
        folder=workspace.path(_FOLDER),
        hessians=second_order,
        threads=workspace.settings.engines.threads,
        model_digest=version.digest,
        on_progress=progress,
        on_warning=lambda warning: workspace.events.emit(Note(warning)),
    )


def _figures(plan: Plan, reports: list[TensorReport], text_digest: str) -> list[Figure]:
    now = time.time()
    found = [
        Figure(
            name="compressed_share",
            value=round(plan.covered, 6),
            how="share of the parent's bytes of tensors that the recipe names a format for",
            at=now,
        )
    ]
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
