"""What a new version goes through before it takes over: the `[rollout]` of a deployment."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pressroom.kernel import DeployError, RolloutSettings, did_you_mean

# Questions of a smoke set, and bytes of its file: it is asked in full each time, and kept with the wish.
_MOST_QUESTIONS = 200
_MOST_BYTES = 1 << 20
_MOST_TOKENS = 4096
_LONGEST_S = 7 * 86_400.0
# A deployment that few ask for is watched this many times as long as a busy one.
_PATIENCE = 4
_QUESTION_KEYS = ("messages", "expect", "pattern", "json", "max_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checks:
    """Times in seconds, `canary` in percent of the requests of its route, rates and ratios against the old version.

    With `canary` 0 the new version takes over as soon as it answers and has passed `sanity` (its answers are text, not
    one token over and over), `smoke` (a set of questions), `parity` (it says what its model says) and `agreement` (the
    least share of the questions on which its first token is the old version's). Otherwise it then takes its share for
    `watch_s`, and longer, to `max_watch_s`, while it had fewer than `min_requests`.
    """

    canary: float = 0.0
    watch_s: float = 30.0
    min_requests: int = 20
    max_watch_s: float = 0.0
    max_error_rate: float = 0.02
    max_latency_ratio: float = 1.5
    parity: bool = True
    sanity: bool = True
    smoke: tuple[Mapping[str, Any], ...] = ()
    agreement: float | None = None
    keep_warm_s: float = 600.0

    @classmethod
    def parse(cls, given: Mapping[str, Any], settings: RolloutSettings, *, folder: Path | None = None) -> Checks:
        """From what a person wrote; `smoke` is the path of a file, from `folder`.

        Raises:
            CheckError: a name or a value that is none, with the name as `facts["key"]`.
        """
        for key in given:
            if key not in _KINDS:
                raise CheckError(
                    f"[rollout] has no {key!r}", hint=did_you_mean(key, _KINDS, otherwise=_known(_KINDS)), key=key
                )
        found = {key: _KINDS[key](key, value) for key, value in given.items() if key != "smoke"}
        found.setdefault("watch_s", settings.watch_s)
        found.setdefault("keep_warm_s", settings.keep_warm_s)
        if "smoke" in given:
            found["smoke"] = read_smoke(_path("smoke", given["smoke"]), folder)
        checks = cls(**found)
        if checks.max_watch_s and checks.max_watch_s < checks.watch_s:
            raise CheckError(
                f"max_watch_s is {checks.max_watch_s:g}, and watch_s {checks.watch_s:g}",
                hint="The longest time to watch is at least the usual one; leave it out for four times that.",
                key="max_watch_s",
            )
        return checks

    @classmethod
    def none(cls, *, keep_warm_s: float) -> Checks:
        """Nothing is checked: it takes over when it answers."""
        return cls(parity=False, sanity=False, keep_warm_s=keep_warm_s)

    @classmethod
    def of(cls, rollout: Mapping[str, Any]) -> Checks:
        """What `as_dict` gave; of an empty one, nothing is checked or kept warm."""
        if not rollout:
            return cls.none(keep_warm_s=0.0)
        known = {field.name for field in dataclasses.fields(cls)}
        found = {key: value for key, value in rollout.items() if key in known}
        return cls(**{**found, "smoke": tuple(found.get("smoke", ()))})

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, for `Deployment.rollout`."""
        found = dataclasses.asdict(self)
        return {**found, "smoke": [dict(question) for question in self.smoke]}

    @property
    def longest_watch_s(self) -> float:
        """After how long it is decided, however few requests there were."""
        return self.max_watch_s or _PATIENCE * self.watch_s

    @property
    def asks(self) -> bool:
        """Whether the new version is asked anything before it takes a share."""
        return self.sanity or bool(self.smoke) or self.agreement is not None


class CheckError(DeployError):
    """What a new version is to go through is not well written."""

    code = "rollout_checks"


def read_smoke(path: Path, folder: Path | None = None) -> tuple[dict[str, Any], ...]:
    """The questions of a smoke set: a line of JSON each, `{"messages": [...]}` with what is expected of the answer.

    Raises:
        CheckError: it cannot be read, or a line is none; the message has its number.
    """
    place = folder / path if folder is not None else path
    try:
        with place.open("rb") as opened:  # what is no plain file may have no size, and no end
            raw = opened.read(_MOST_BYTES + 1)
        if len(raw) > _MOST_BYTES:
            raise CheckError(
                f"the smoke set {path} is larger than {_MOST_BYTES:,} bytes",
                hint="A smoke set is a handful of questions; `press batch` answers large files.",
                key="smoke",
            )
        lines = raw.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise CheckError(
            f"the smoke set {path} cannot be read: {reason}",
            hint="It is a file of JSON lines; its path is taken from the folder of the file that names it.",
            key="smoke",
        ) from error
    found = [_question(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not 1 <= len(found) <= _MOST_QUESTIONS:
        raise CheckError(
            f"the smoke set {path} has {len(found)} questions",
            hint=f"It has 1 to {_MOST_QUESTIONS}, a line each.",
            key="smoke",
        )
    return tuple(found)


def _question(line: str, place: str) -> dict[str, Any]:
    wrong = ""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CheckError(f"{place}: not JSON: {error}", hint=_SHAPE, key="smoke") from None
    if not isinstance(found, dict):
        raise CheckError(f"{place}: not an object", hint=_SHAPE, key="smoke")
    unknown = [key for key in found if key not in _QUESTION_KEYS]
    if unknown:
        wrong = f"there is no {unknown[0]!r}. {did_you_mean(unknown[0], _QUESTION_KEYS)}".strip()
    elif not _are_messages(found.get("messages")):
        wrong = "`messages` is a list of objects with `role` and `content`, both text, and at least one"
    elif "expect" in found and (not isinstance(found["expect"], str) or not found["expect"]):
        wrong = "`expect` is text that the answer contains"
    elif "json" in found and not isinstance(found["json"], bool):
        wrong = "`json` is true where the answer must be JSON"
    elif "max_tokens" in found and not _is_whole(found["max_tokens"], 1, _MOST_TOKENS):
        wrong = f"`max_tokens` is a whole number from 1 to {_MOST_TOKENS}"
    elif "pattern" in found:
        try:
            re.compile(found["pattern"])
        except (re.error, TypeError, RecursionError) as error:
            wrong = f"`pattern` is no regular expression: {error}"
    if wrong:
        raise CheckError(f"{place}: {wrong}", hint=_SHAPE, key="smoke")
    return found


_SHAPE = (
    'A line is {"messages": [{"role": "user", "content": "…"}]} with "expect": "text in the answer", '
    '"pattern": "regular expression" or "json": true.'
)


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in value
        )
    )


def _is_whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _wrong(key: str, value: Any, allowed: str) -> CheckError:
    return CheckError(f"[rollout] {key} is {str(value)[:40]!r}", hint=f"It is {allowed}.", key=key)


def _number(low: float, high: float, allowed: str) -> Any:
    def read(key: str, value: Any) -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            raise _wrong(key, value, allowed)
        return float(value)

    return read


def _whole(low: int, high: int) -> Any:
    def read(key: str, value: Any) -> int:
        if not _is_whole(value, low, high):
            raise _wrong(key, value, f"a whole number from {low} to {high:,}")
        return int(value)

    return read


def _truth(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(key, value, "true or false")
    return value


def _path(key: str, value: Any) -> Path:
    if not isinstance(value, (str, Path)) or not str(value):
        raise _wrong(key, value, "the path of a file of JSON lines")
    return Path(value)


_SECONDS = _number(0, _LONGEST_S, f"a number of seconds from 0 to {_LONGEST_S:g}")
_KINDS: dict[str, Any] = {
    "canary": _number(0, 100, "a percentage from 0 (switch after the checks) to 100"),
    "watch_s": _SECONDS,
    "min_requests": _whole(0, 1_000_000),
    "max_watch_s": _SECONDS,
    "max_error_rate": _number(0, 1, "a share from 0 to 1"),
    "max_latency_ratio": _number(1, 1e6, "a number of at least 1"),
    "parity": _truth,
    "sanity": _truth,
    "smoke": _path,
    "agreement": _number(0, 1, "a share from 0 to 1"),
    "keep_warm_s": _SECONDS,
}


def _known(names: Sequence[str] | Mapping[str, Any]) -> str:
    return f"It has {', '.join(names)}."
