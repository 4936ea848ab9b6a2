"""Money as whole numbers, and the price of a token.

PressroomError
└── PriceError   a price that is not well written, or that nobody can pay
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from pressroom.kernel.errors import PressroomError, did_you_mean

#: Nano-dollars in a dollar. Amounts are whole numbers of these.
NANO = 10**9
#: Pico-dollars a token in one dollar for a million tokens. Prices are whole numbers of these.
PICO_A_TOKEN = 10**6
_PICO_IN_NANO = 1_000
# In US dollars: for a million tokens, and for a request. The dearest models cost 600 for a million tokens; a price of a
# thousand is one that was written for a thousand tokens, or in cents. It also keeps sums over rows within 64 bits.
_MOST_A_MILLION = 1_000
_MOST_A_REQUEST = 1_000
_LONGEST = 24
_FIELDS = ("prompt", "completion", "cached", "request")


class PriceError(PressroomError):
    code = "price"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tier:
    """What all tokens of a request cost whose prompt has more than `above` tokens; in pico-dollars a token."""

    above: int
    prompt: int
    completion: int
    cached: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """What a model costs, in pico-dollars (10^-12 USD) for a token and nano-dollars for a request. One dollar for a
    million tokens is 1,000,000 pico-dollars a token; vendors' prices are whole numbers of these.

    More tokens never cost less: tiers only rise, and a cached token is never dearer than another. So the price of the
    most that a request can use is a bound of what it comes to.

    `source` says where it is from (`genai-prices 0.2.3: openai/gpt-4o-mini`), `since` the day it holds from
    (`2026-01-01`, '' where that is not known).
    """

    prompt: int = 0
    completion: int = 0
    #: For prompt tokens that the vendor had in its cache; below zero: as any other prompt token.
    cached: int = -1
    request_nano: int = 0
    #: For long prompts, the shortest first.
    tiers: tuple[Tier, ...] = ()
    #: What the vendor takes where a request names another class of service (`priority`, `flex`), by its name.
    services: tuple[tuple[str, Price], ...] = ()
    source: str = ""
    since: str = ""

    def __post_init__(self) -> None:
        if self.cached < 0:
            object.__setattr__(self, "cached", self.prompt)
        below = Tier(above=-1, prompt=self.prompt, completion=self.completion, cached=self.cached)
        if min(self.prompt, self.completion, self.request_nano) < 0 or self.cached > self.prompt:
            raise ValueError(f"a price is not negative, and a cached token not dearer than another: {below}")
        for tier in self.tiers:
            if (
                tier.above <= below.above
                or tier.prompt < below.prompt
                or tier.completion < below.completion
                or not below.cached <= tier.cached <= tier.prompt
            ):
                raise ValueError(f"a tier is for longer prompts and not cheaper than the one before: {tier}")
            below = tier

    @property
    def free(self) -> bool:
        """Whether nothing is to be paid, whatever is asked."""
        return not (self.prompt or self.completion or self.request_nano or self.tiers)

    def nano(self, *, prompt: int, completion: int, cached: int = 0) -> int:
        """What so many tokens come to, in nano-dollars: exact in pico-dollars, rounded up once. `prompt` includes the
        `cached` ones; no count is negative."""
        if self.tiers and prompt > self.tiers[0].above:
            return self._nano_above(prompt, completion, cached)
        if not (self.prompt or self.completion or self.request_nano):
            return 0
        if cached > prompt:  # a usage block that lies
            cached = prompt
        pico = (prompt - cached) * self.prompt + cached * self.cached + completion * self.completion
        return self.request_nano - (-pico // _PICO_IN_NANO)

    def _nano_above(self, prompt: int, completion: int, cached: int) -> int:
        tier = next(tier for tier in reversed(self.tiers) if prompt > tier.above)
        cached = min(cached, prompt)
        pico = (prompt - cached) * tier.prompt + cached * tier.cached + completion * tier.completion
        return self.request_nano - (-pico // _PICO_IN_NANO)

    def at_service(self, name: str) -> Price:
        """The price where a request asks for this class of service; of one that is not known, the dearest there is."""
        if not self.services or name in ("", "default", "standard"):
            return self
        for known, price in self.services:
            if known == name:
                return price
        return max((self, *(price for _, price in self.services)), key=lambda price: (price.completion, price.prompt))

    @classmethod
    def parse(cls, asked: Mapping[str, Any], *, source: str = "", since: str = "") -> Price:
        """The price that people wrote, in US dollars for a million tokens: `prompt`, `completion`, and where they
        differ `cached` (dollars for a million cached prompt tokens) and `request` (dollars for each request).

        A number with a point counts as the digits it was written with, not as the nearest binary fraction.

        Raises:
            PriceError: a name that is none of these, one that is missing, or a value that cannot be a price.
        """
        if not isinstance(asked, Mapping):
            raise PriceError(f"a price is {asked!r:.80}", hint="Write { prompt = 0.15, completion = 0.60 }.")
        for name in asked:
            if name not in _FIELDS:
                otherwise = f"A price has {', '.join(_FIELDS)}."
                raise PriceError(
                    f"a price has no {name!r:.60}", hint=did_you_mean(str(name), _FIELDS, otherwise=otherwise)
                )
        missing = [name for name in ("prompt", "completion") if asked.get(name) is None]
        if missing:
            raise PriceError(
                f"a price lacks {' and '.join(missing)}",
                hint="Say both, in US dollars for a million tokens; 0 where one costs nothing.",
            )
        cached, request = asked.get("cached"), asked.get("request")
        prompt = _whole(asked["prompt"], "prompt", PICO_A_TOKEN, _MOST_A_MILLION)
        cheaper = prompt if cached is None else _whole(cached, "cached", PICO_A_TOKEN, _MOST_A_MILLION)
        if cheaper > prompt:
            raise PriceError(
                f"a price has cached = {cached}, which is more than prompt = {asked['prompt']}",
                hint="A prompt token that the vendor had in its cache costs at most as much as one that it had not.",
            )
        return cls(
            prompt=prompt,
            completion=_whole(asked["completion"], "completion", PICO_A_TOKEN, _MOST_A_MILLION),
            cached=cheaper,
            request_nano=0 if request is None else _whole(request, "request", NANO, _MOST_A_REQUEST),
            source=source,
            since=since,
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, in US dollars for a million tokens, as exact text."""
        found: dict[str, Any] = {
            "prompt": usd(self.prompt, PICO_A_TOKEN),
            "completion": usd(self.completion, PICO_A_TOKEN),
            "cached": usd(self.cached, PICO_A_TOKEN),
            "request": usd(self.request_nano),
        }
        if self.tiers:
            found["tiers"] = [
                {"above": tier.above}
                | {name: usd(getattr(tier, name), PICO_A_TOKEN) for name in ("prompt", "completion", "cached")}
                for tier in self.tiers
            ]
        if self.services:
            found["services"] = {
                name: {
                    "prompt": usd(price.prompt, PICO_A_TOKEN),
                    "completion": usd(price.completion, PICO_A_TOKEN),
                    "cached": usd(price.cached, PICO_A_TOKEN),
                }
                for name, price in self.services
            }
        return found | {"source": self.source, "since": self.since}


def usd(amount: int, parts: int = NANO) -> str:
    """An amount in dollars as exact text without exponent: 1_500_000_000 nano-dollars are `1.5`."""
    text = f"{Decimal(amount) / parts:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _whole(value: Any, name: str, parts: int, most: int) -> int:
    """A number of dollars as a whole number of their parts."""
    said = f"a price has {name} = {str(value)[:60]!r}"
    hint = f"Write US dollars as 0.15, from 0 to {most:,}."
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
            raise ValueError
        # Of a float its shortest text: what stood in the file.
        text = repr(value) if isinstance(value, float) else str(value).strip()
        if len(text) > _LONGEST:  # longer than Decimal keeps exactly
            raise ValueError
        number = Decimal(text)
    except (InvalidOperation, ValueError):
        raise PriceError(f"{said}, which is no number", hint=hint) from None
    if not number.is_finite() or not 0 <= number <= most:
        raise PriceError(f"{said}, which cannot be", hint=hint)
    exact = number.normalize()
    scale = -int(exact.as_tuple().exponent)  # of a finite number it is one
    places = len(str(parts)) - 1
    if scale > places:
        raise PriceError(f"{said}, which is finer than what is counted in", hint=f"At most {places} decimals.")
    return int(exact.scaleb(places))
