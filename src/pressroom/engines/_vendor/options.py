"""What a deployment may say about a vendor, checked once."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pressroom.kernel import did_you_mean

#: How vendors' keys look, whole or masked in the middle, after "Bearer" or by how they begin: for texts that quote one.
LIKE_KEYS = re.compile(r"(?i)\bbearer\s+[^\s\"',;]+|\b(?:sk|pk|rk|gsk|xai)[-_][a-z0-9_\-*.]{8,}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


class OptionError(Exception):
    """An option is not one, or its value not fit. The value is not in the text: somebody may have put a key there."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Seconds where a name ends in `_s`; docs/vendors.md says what each is for."""

    key_env: str = ""
    key_file: str = ""
    no_key: bool = False
    allow_http: bool = False
    ca_file: str = ""
    connect_timeout_s: float = 10.0
    silence_s: float = 120.0
    timeout_s: float = 600.0
    retries: int = 2
    breaker_failures: int = 5
    breaker_s: float = 10.0
    completions: str = "chat"
    fields: str = ""
    max_tokens_default: int = 4096

    @property
    def extra(self) -> frozenset[str]:
        """The names in `fields`."""
        return frozenset(self.fields.replace(",", " ").split())


# The least a number may be.
_LOW = {
    "connect_timeout_s": 0.01,
    "silence_s": 0.01,
    "timeout_s": 0.01,
    "retries": 0,
    "breaker_failures": 0,
    "breaker_s": 0.01,
    "max_tokens_default": 1,
}
_CHOICES = {"completions": ("chat", "native", "off")}
_WANTED = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
_KEY_HINT = "A key is never given itself: key_env=NAME names the variable that has it, key_file=/PATH the file."


def read(given: Mapping[str, Any]) -> Options:
    """The options of a deployment.

    Raises:
        OptionError: an unknown one, or a value of the wrong kind or out of bounds.
    """
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Options)}
    for name, value in given.items():
        if name not in kinds:
            known = ", ".join(kinds)
            hint = _KEY_HINT if "key" in name.lower() else did_you_mean(name, kinds, otherwise=f"Its options: {known}.")
            raise OptionError(f"vendor has no option {name!r}", hint)
        _check(name, kinds[name], value)
    values: dict[str, Any] = {name: float(value) if kinds[name] is float else value for name, value in given.items()}
    found = Options(**values)
    if sum((bool(found.key_env), bool(found.key_file), found.no_key)) > 1:
        raise OptionError("of the options key_env, key_file and no_key one may be given", _KEY_HINT)
    for name in ("key_env", "key_file"):
        if LIKE_KEYS.search(getattr(found, name)):
            raise OptionError(f"the option {name} of vendor holds what looks like a key", _KEY_HINT)
    if found.key_env and not _VARIABLE.fullmatch(found.key_env):
        raise OptionError("the option key_env of vendor is not the name of a variable", _KEY_HINT)
    return found


def _check(name: str, kind: type, value: Any) -> None:
    low, choices = _LOW.get(name), _CHOICES.get(name)
    fits = type(value) is kind or (kind is float and type(value) is int)
    if fits and low is not None:
        fits = low <= value < math.inf
    if fits and choices:
        fits = value in choices
    if not fits:
        wanted = f"one of {', '.join(choices)}" if choices else _WANTED[kind]
        bound = "" if low is None else f", at least {low:g}"
        raise OptionError(f"the option {name} of vendor is not {wanted}{bound}", _KEY_HINT if "key" in name else "")
