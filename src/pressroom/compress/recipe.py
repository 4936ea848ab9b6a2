"""What is to be done to a model: ordered steps, and the text that they are calibrated on."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pressroom.kernel import RecipeError, did_you_mean

#: How weights are rounded: each to the nearest value of its block, the importance of its column weighed in; or one
#: column after the other, where those to come make up for the error of those that are done (GPTQ, arXiv 2210.17323).
ROUNDINGS = ("gptq", "nearest")
#: Names that others have for the same.
ALIASES = {"fp32": "f32", "fp16": "f16", "int8": "q8_0", "int4": "q4_0"}

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Steps in their order. `embedding` is the format of the token embedding and the output head ('': what the steps
    say of them, else as they are)."""

    steps: tuple[Step, ...]
    calibration: CalibrationText = field(default_factory=CalibrationText)
    embedding: str = ""
    name: str = ""

    @property
    def calibrates(self) -> bool:
        """Whether a step looks at what goes into the layers."""
        return any(bits_below_16(step.to) for step in self.steps)

    def rounding_of(self, tensor: str) -> str:
        """How the weights of a tensor are rounded: as the last step says that means it."""
        return next((step.rounding for step in reversed(self.steps) if step.matches(tensor)), "nearest")

    def as_dict(self) -> dict[str, Any]:
        """As it would stand in a file: what a version is tagged with, and a run has for its parameters."""
        return {
            "name": self.name,
            "embedding": self.embedding,
            "calibration": {"text": self.calibration.text, "tokens": self.calibration.tokens},
            "step": [{"to": step.to, "targets": step.targets, "rounding": step.rounding} for step in self.steps],
        }

    def as_toml(self) -> str:
        """A file that `read_recipe` makes the same recipe of."""
        found = self.as_dict()
        lines = [f"{key} = {_text(found[key])}" for key in ("name", "embedding") if found[key]]
        lines += ["", "[calibration]"]
        lines += [
            f"{key} = {value if isinstance(value, int) else _text(value)}"
            for key, value in found["calibration"].items()
            if value
        ]
        for step in found["step"]:
            lines += ["", "[[step]]", *(f"{key} = {_text(value)}" for key, value in step.items())]
        return "\n".join(lines) + "\n"


def _text(value: str) -> str:
    """A string as TOML has it: its basic strings are those of JSON."""
    return json.dumps(value)


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

    top = known("", table, ("name", "embedding", "calibration", "step"))
    given = known("calibration", top.get("calibration", {}), ("text", "tokens"))
    text, tokens = given.get("text", ""), given.get("tokens", _TOKENS)
    if not isinstance(text, str):
        wrong.append("calibration.text is not a source")
    if type(tokens) is not int or not 512 <= tokens <= 10_000_000:
        wrong.append(f"calibration.tokens = {tokens!r} is not a number from 512 to 10,000,000")
    entries = top.get("step", [])
    if not isinstance(entries, list) or not entries:
        wrong.append("there is no [[step]]")
        entries = []
    steps = [_step(f"step {number}", known(f"step {number}", entry, ("to", "targets", "rounding")), wrong)
             for number, entry in enumerate(entries, start=1)]  # fmt: skip
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
