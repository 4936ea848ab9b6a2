"""What a deployment says about its cache: the table `[cache]` of its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pressroom.kernel import DeployError, did_you_mean

_YEAR_S = 366 * 86_400
_LEAST_BYTES = 65_536
_MOST_BYTES = 1 << 40
_MOST_ENTRIES = 100_000
#: Below this, sentences of one language have little more in common than the language.
_LEAST_THRESHOLD = 0.5
#: Chosen by the pairs in docs/cache.md, with equal words and without.
THRESHOLD = 0.9
FREE_THRESHOLD = 0.97


@dataclass(frozen=True, kw_only=True, slots=True)
class MeaningPolicy:
    """Questions alike in meaning get the same answer. `deployment` turns a text into a vector, `threshold` is a cosine,
    and a question waits for its vector `timeout_s` seconds at most. With `same_words` two questions may differ in small
    words only: no threshold tells a synonym from the contrary."""

    deployment: str
    threshold: float = THRESHOLD
    same_words: bool = True
    max_entries: int = 10_000
    timeout_s: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """The table it is read from, with every setting."""
        return {
            "deployment": self.deployment,
            "threshold": self.threshold,
            "same_words": self.same_words,
            "max_entries": self.max_entries,
            "timeout_s": self.timeout_s,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class CachePolicy:
    """Which answers of a deployment are kept, for whom, and for how long. `across_keys` is False, "team" or True;
    `max_bytes` bounds the memory of this deployment's answers."""

    exact: bool = False
    ttl_s: float = 3_600
    temperature_above_0: bool = False
    across_keys: bool | str = False
    max_bytes: int = 268_435_456
    meaning: MeaningPolicy | None = None

    @classmethod
    def parse(cls, table: Mapping[str, Any], *, place: str = "cache") -> CachePolicy:
        """The policy that a table of a deployment's file describes. `place` is where it is, for the errors.

        Raises:
            DeployError: a setting is unknown, wrong, or contradicts another.
        """
        _known(table, _SETTINGS, place)
        found: dict[str, Any] = {}
        for name in ("exact", "temperature_above_0"):
            if name in table:
                found[name] = _flag(table[name], f"{place}.{name}")
        if "ttl_s" in table:
            found["ttl_s"] = _number(table["ttl_s"], f"{place}.ttl_s", least=0.001, most=_YEAR_S, unit="seconds")
        if "max_bytes" in table:
            found["max_bytes"] = _whole(
                table["max_bytes"], f"{place}.max_bytes", least=_LEAST_BYTES, most=_MOST_BYTES, unit="bytes"
            )
        if "across_keys" in table:
            across = table["across_keys"]
            if type(across) is not bool and across != "team":
                raise _wrong(f"{place}.across_keys", across, 'false (only to the key that asked), "team" or true')
            found["across_keys"] = across
        if "meaning" in table:
            if table.get("exact") is False:
                raise DeployError(
                    f"{place}.exact is false, and [{place}.meaning] is there.",
                    hint="Equal questions are alike in meaning: leave exact out, or the table [meaning].",
                    setting=f"{place}.exact",
                )
            found["exact"] = True
            found["meaning"] = _meaning(table["meaning"], f"{place}.meaning")
        elif table and "exact" not in table:
            raise DeployError(
                f"[{place}] has {', '.join(sorted(table))}, but does not say that anything is kept.",
                hint="Add exact = true to answer equal requests from the cache, or exact = false.",
                setting=f"{place}.exact",
            )
        return cls(**found)

    def as_dict(self) -> dict[str, Any]:
        """The table it is read from, with every setting: `parse` of it gives an equal policy."""
        found: dict[str, Any] = {
            "exact": self.exact,
            "ttl_s": self.ttl_s,
            "temperature_above_0": self.temperature_above_0,
            "across_keys": self.across_keys,
            "max_bytes": self.max_bytes,
        }
        if self.meaning is not None:
            found["meaning"] = self.meaning.as_dict()
        return found


def directives(cache_control: bytes) -> tuple[bool, bool]:
    """What a client's `Cache-Control` header asks for: (a fresh answer, and that nothing is kept or answered from what
    was kept). Directives that mean nothing here are passed over, as HTTP has it."""
    fresh = kept_out = False
    for directive in cache_control.lower().split(b","):
        directive = directive.strip()
        if directive == b"no-store":
            kept_out = True
        elif directive == b"no-cache" or directive.replace(b" ", b"").replace(b'"', b"") == b"max-age=0":
            fresh = True
    return fresh, kept_out


_SETTINGS = ("exact", "ttl_s", "temperature_above_0", "across_keys", "max_bytes", "meaning")
_MEANING = ("deployment", "threshold", "same_words", "max_entries", "timeout_s")


def _meaning(table: Any, place: str) -> MeaningPolicy:
    _known(table, _MEANING, place)
    deployment = table.get("deployment")
    if type(deployment) is not str or not deployment.strip():
        if deployment is None:
            message = f"[{place}] does not say which deployment turns texts into vectors."
            hint = 'Add deployment = "NAME": the name of a deployment of this server that answers /v1/embeddings.'
            raise DeployError(message, hint=hint, setting=f"{place}.deployment")
        raise _wrong(f"{place}.deployment", deployment, "the name of an embeddings deployment of this server")
    found: dict[str, Any] = {"deployment": deployment}
    if "same_words" in table:
        found["same_words"] = _flag(table["same_words"], f"{place}.same_words")
        if not found["same_words"]:
            found["threshold"] = FREE_THRESHOLD
    if "threshold" in table:
        found["threshold"] = _number(
            table["threshold"], f"{place}.threshold", least=_LEAST_THRESHOLD, most=1, unit="(a cosine)"
        )
    if "max_entries" in table:
        found["max_entries"] = _whole(
            table["max_entries"], f"{place}.max_entries", least=1, most=_MOST_ENTRIES, unit="answers"
        )
    if "timeout_s" in table:
        found["timeout_s"] = _number(table["timeout_s"], f"{place}.timeout_s", least=0.01, most=60, unit="seconds")
    return MeaningPolicy(**found)


def _known(table: Any, names: tuple[str, ...], place: str) -> None:
    if not isinstance(table, Mapping):
        raise DeployError(f"{place} is {_shown(table)}, not a table.", hint=f"Write it as [{place}].", setting=place)
    for name in table:
        if name not in names:
            raise DeployError(
                f"{place}.{str(name)[:80]} is not a setting.",
                hint=did_you_mean(str(name)[:80], names, otherwise=f"There are: {', '.join(names)}."),
                setting=f"{place}.{str(name)[:80]}",
                allowed=list(names),
            )


def _flag(value: Any, place: str) -> bool:
    if type(value) is not bool:
        raise _wrong(place, value, "true or false")
    return value


def _number(value: Any, place: str, *, least: float, most: float, unit: str) -> float:
    # Written so that a NaN is refused too.
    if type(value) not in (int, float) or not least <= value <= most:
        raise _wrong(place, value, f"a number from {least:g} to {most:,g} {unit}".replace(",", "_"))
    return value  # type: ignore[no-any-return]


def _whole(value: Any, place: str, *, least: int, most: int, unit: str) -> int:
    if type(value) is not int or not least <= value <= most:
        raise _wrong(place, value, f"a whole number from {least} to {most} {unit}")
    return value


def _wrong(place: str, value: Any, allowed: str) -> DeployError:
    return DeployError(f"{place} is {_shown(value)}.", hint=f"Allowed is {allowed}.", setting=place)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)[:80]
