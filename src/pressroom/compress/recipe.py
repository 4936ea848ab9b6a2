"""What is to be done to a model: ordered steps, and the text that they are calibrated on."""

from __future__ import annotations

import itertools
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pressroom.compress.steps.base import Stage
from pressroom.compress.steps.base import Step as OtherStep
from pressroom.kernel import MissingDependencyError, RecipeError, did_you_mean

#: How weights are rounded: each to the nearest value of its block, the importance of its column weighed in; or one
#: column after the other, where those to come make up for the error of those that are done (GPTQ, arXiv 2210.17323).
ROUNDINGS = ("gptq", "nearest")
#: Names that others have for the same.
ALIASES = {"fp32": "f32", "fp16": "f16", "int8": "q8_0", "int4": "q4_0"}

#: The method of a step that rounds, which is what a step does where its table names none.
QUANTISE = "quantise"

_MOST_BYTES = 1 << 20
_TOKENS = 16_384


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationText:
    """The text that shows which weights matter: a source of `press pull` ('': the setting's), and how many tokens."""

    text: str = ""
    tokens: int = _TOKENS


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """Round the tensors whose names in the file match `targets` whole to the format `to`. Of several steps that match
    a tensor the last one counts."""

    to: str
    targets: str = ".*"
    rounding: str = "gptq"

    def matches(self, tensor: str) -> bool:
        """Whether it is about this tensor."""
        return re.fullmatch(self.targets, tensor) is not None

    @property
    def method(self) -> str:
        """As a recipe calls it."""
        return QUANTISE

    @property
    def stage(self) -> Stage:
        """Number formats come last."""
        return Stage.NUMBERS


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Steps in their order: those that round, and others (`pressroom.compress.steps`). `embedding` is the format of the
    token embedding and the output head ('': what the steps say of them, else as they are); `seed` is for steps that
    draw numbers."""

    steps: tuple[Step | OtherStep, ...]
    calibration: CalibrationText = field(default_factory=CalibrationText)
    embedding: str = ""
    name: str = ""
    seed: int = 0

    @property
    def calibrates(self) -> bool:
        """Whether a step looks at the calibration text."""
        return any(bits_below_16(one.to) if isinstance(one, Step) else one.calibrates for one in self.steps)

    @property
    def rounds(self) -> tuple[Step, ...]:
        """The steps that round."""
        return tuple(one for one in self.steps if isinstance(one, Step))

    @property
    def parts(self) -> tuple[Recipe | OtherStep, ...]:
        """What is done one after the other, each to the file that the one before it wrote: steps, and recipes that only
        round, since rounding steps side by side are one pass. The embedding is for the last of these."""
        found: list[Recipe | OtherStep] = []
        for is_rounding, group in itertools.groupby(self.steps, lambda one: isinstance(one, Step)):
            if is_rounding:
                found.append(replace(self, steps=tuple(group), embedding=""))
            else:
                found.extend(one for one in group if not isinstance(one, Step))
        if self.embedding:
            last = found.pop() if found and isinstance(found[-1], Recipe) else replace(self, steps=())
            assert isinstance(last, Recipe)
            found.append(replace(last, embedding=self.embedding))
        return tuple(found)

    def rounding_of(self, tensor: str) -> str:
        """How the weights of a tensor are rounded: as the last step says that means it."""
        return next((step.rounding for step in reversed(self.rounds) if step.matches(tensor)), "nearest")

    def as_dict(self) -> dict[str, Any]:
        """As it would stand in a file: what a version is tagged with, and a run has for its parameters."""
        return {
            "name": self.name,
            "embedding": self.embedding,
            "seed": self.seed,
            "calibration": {"text": self.calibration.text, "tokens": self.calibration.tokens},
            "step": [step_as_dict(step) for step in self.steps],
        }

    def as_toml(self) -> str:
        """A file that `read_recipe` makes the same recipe of."""
        found = self.as_dict()
        tables = [("", {key: found[key] for key in ("name", "embedding", "seed")})]
        tables += [("[calibration]", found["calibration"]), *(("[[step]]", step) for step in found["step"])]
        return "\n\n".join(_toml(head, table) for head, table in tables) + "\n"


def _toml(head: str, table: Mapping[str, Any]) -> str:
    """A table; what is empty is left out. TOML's strings, numbers, truth values and lists are those of JSON."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if value not in ("", [])]
    return "\n".join([head, *lines] if head else lines)


def step_as_dict(step: Step | OtherStep) -> dict[str, Any]:
    """A step as its table in a file."""
    given = {field.name: getattr(step, field.name) for field in fields(step)}  # type: ignore[arg-type]
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    return plain if isinstance(step, Step) else {"method": step.method, **plain}


def out_of_order(steps: Sequence[Step | OtherStep]) -> list[str]:
    """What stands behind a step that would undo it or be undone by it, in words."""

    def about(one: Step | OtherStep) -> str:
        return f"({one.method}), which is about {one.stage.name.lower().replace('_', ' ')}"

    found = []
    for number, step in enumerate(steps):
        keeps = step.keeps if isinstance(step, OtherStep) else frozenset()
        for earlier, before in enumerate(steps[:number]):
            if step.stage < before.stage and before.stage not in keeps:
                found.append(f"step {number + 1} {about(step)}, must come before step {earlier + 1} {about(before)}")
                break
    return found


def bits_below_16(format: str) -> bool:
    """Whether rounding to it loses enough that it matters how."""
    return format not in ("f32", "f16", "bf16")


def canonical(format: str) -> str:
    """The name of a number format for one of its names; what is none is given back as it is, in small letters."""
    text = format.strip().lower()
    return ALIASES.get(text, text)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file.

    Raises:
        RecipeError: it cannot be read, or says what is not understood; all that is wrong is named at once.
    """
    try:
        if not path.is_file():
            raise RecipeError(f"there is no recipe {path}", hint="Check the path.", path=str(path))
        if path.stat().st_size > _MOST_BYTES:
            raise RecipeError(f"{path} is over {_MOST_BYTES} bytes, which no recipe is", hint="Check the path.")
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}", hint="Check the path.") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"the recipe {path} is no TOML: {error}", hint="See docs/compress.md for one.") from error
    try:
        return parse(found, name=path.stem)
    except RecipeError as error:
        raise RecipeError(f"the recipe {path}: {error.message}", hint=error.hint, **error.facts) from None


def parse(table: Mapping[str, Any], *, name: str = "") -> Recipe:
    """The recipe that a table says. Raises RecipeError with all that is wrong."""
    wrong: list[str] = []

    def known(place: str, given: Any, allowed: tuple[str, ...]) -> Mapping[str, Any]:
        if not isinstance(given, Mapping):
            wrong.append(f"{place} is not a table")
            return {}
        for key in given:
            if key not in allowed:
                close = did_you_mean(str(key), allowed)
                wrong.append(
                    f"{place}.{key} is not known. {close}".strip() if place else f"{key} is not known. {close}"
                )
        return given

    top = known("", table, ("name", "embedding", "seed", "calibration", "step"))
    given = known("calibration", top.get("calibration", {}), ("text", "tokens"))
    text, tokens = given.get("text", ""), given.get("tokens", _TOKENS)
    if not isinstance(text, str):
        wrong.append("calibration.text is not a source")
    if type(tokens) is not int or not 512 <= tokens <= 10_000_000:
        wrong.append(f"calibration.tokens = {tokens!r} is not a number from 512 to 10,000,000")
    seed = top.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 1 << 63:
        wrong.append(f"seed = {seed!r} is not a whole number from 0 on")
    entries = top.get("step", [])
    if not isinstance(entries, list) or not entries:
        wrong.append("there is no [[step]]")
        entries = []
    steps: list[Step | OtherStep] = []
    for number, entry in enumerate(entries, start=1):
        place = f"step {number}"
        method = entry.get("method", QUANTISE) if isinstance(entry, Mapping) else QUANTISE
        if method == QUANTISE:
            steps.append(_step(place, known(place, entry, ("method", "to", "targets", "rounding")), wrong))
        elif (other := _other(place, method, entry, wrong)) is not None:
            steps.append(other)
    wrong += out_of_order(steps) if len(steps) == len(entries) else []
    embedding = top.get("embedding", "")
    if not isinstance(embedding, str):
        wrong.append(f"embedding = {embedding!r} is not the name of a number format")
        embedding = ""
    if wrong:
        raise RecipeError("; ".join(wrong), hint="docs/compress.md shows recipes.", problems=wrong)
    return Recipe(
        steps=tuple(steps),
        calibration=CalibrationText(text=text, tokens=tokens),
        embedding=canonical(embedding),
        seed=seed,
        name=str(top.get("name", name)),
    )


def _step(place: str, given: Mapping[str, Any], wrong: list[str]) -> Step:
    to, targets, rounding = given.get("to"), given.get("targets", ".*"), given.get("rounding", "gptq")
    if not isinstance(to, str) or not to:
        wrong.append(f"{place}.to is missing: the number format")
        to = ""
    if not isinstance(targets, str):
        wrong.append(f"{place}.targets is not a regular expression")
        targets = ""
    try:
        re.compile(targets)
    except re.error as error:
        wrong.append(f"{place}.targets = {targets!r} is not a regular expression: {error}")
    if rounding not in ROUNDINGS:
        wrong.append(f"{place}.rounding = {rounding!r} is none of {', '.join(ROUNDINGS)}")
    return Step(to=canonical(to), targets=targets, rounding=str(rounding))


def _other(place: str, method: Any, given: Mapping[str, Any], wrong: list[str]) -> OtherStep | None:
    from pressroom.compress.steps import step

    if not isinstance(method, str):
        wrong.append(f"{place}.method = {method!r} is not the name of a method")
        return None
    try:
        return step(method, {key: value for key, value in given.items() if key != "method"})
    except MissingDependencyError as error:
        wrong.append(f"{place} ({method}): {error.message}. {error.hint}")
    except RecipeError as error:
        problems = error.facts.get("problems")
        if problems:
            wrong.extend(f"{place}.{problem}" for problem in problems)
        else:
            wrong.append(f"{place}.method: {error.message}. {error.hint}")
    return None
