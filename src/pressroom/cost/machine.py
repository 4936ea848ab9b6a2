"""What tokens cost on a machine of one's own, and how many it takes until that is less than what a vendor asks.

powered seconds × price of an hour / 3600 = what the machine cost
price of an hour × hours of a month / what the vendor asks for one token of this traffic = tokens to break even
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

from pressroom.cost.base import NANO

_HOUR_S = 3_600
_MILLION = 10**6
#: Hours of a month: a twelfth of a year.
MONTH_HOURS = 730


@dataclass(frozen=True, kw_only=True, slots=True)
class BreakEven:
    """How the machine and a vendor compare for traffic of one kind.

    `vendor_nano` is what the vendor asks for `tokens` tokens of that traffic, `month_nano` what the machine costs in a
    month. `tokens_a_month`: from this many on the machine is cheaper; None where the vendor asks nothing. `capacity`:
    the most tokens that the machine can make of that traffic in a month; None where that was not measured.
    """

    vendor: str
    vendor_nano: int
    tokens: int
    month_nano: int
    capacity: int | None

    @property
    def vendor_nano_a_million(self) -> int:
        return per_million(self.vendor_nano, self.tokens) or 0

    @property
    def tokens_a_month(self) -> int | None:
        return -(-self.month_nano * self.tokens // self.vendor_nano) if self.vendor_nano and self.tokens else None

    @property
    def reached(self) -> bool | None:
        """Whether one machine can make that many; None where it is not known how many it can make."""
        if self.tokens_a_month is None:
            return False
        return None if self.capacity is None else self.tokens_a_month <= self.capacity


def machine_nano(seconds: float, usd_an_hour: float) -> int:
    """What a machine costs that is on for so long, in nano-dollars, rounded up."""
    # Of a float its shortest text: what stands in the settings.
    exact = Decimal(repr(usd_an_hour)) * Decimal(repr(seconds)) * NANO / _HOUR_S
    return int(exact.to_integral_value(ROUND_CEILING))


def apportioned(whole: int, weights: Sequence[int]) -> list[int]:
    """Whole parts of `whole` in proportion to the weights, which together are exactly the whole; zeros where there is
    no weight at all."""
    total = sum(weights)
    if total <= 0:
        return [0] * len(weights)
    parts = [whole * weight // total for weight in weights]
    # What rounding left over goes to those who lost the most by it.
    lost = sorted(range(len(weights)), key=lambda at: -(whole * weights[at] % total))
    for at in lost[: whole - sum(parts)]:
        parts[at] += 1
    return parts


def per_million(nano: int, tokens: int) -> int | None:
    """Nano-dollars for a million tokens, rounded up; None where there are none."""
    return -(-nano * _MILLION // tokens) if tokens > 0 else None


def capacity(tokens_a_second: float, *, hours: float, tokens: int, completion_tokens: int) -> int | None:
    """The most tokens of a traffic (`tokens` in all, `completion_tokens` of them answered) that an engine makes in so
    many hours, if it generates so many tokens a second at its best. Reading the prompts is taken to cost no time: a
    bound from above. None for traffic without answers."""
    if completion_tokens <= 0:
        return None
    return int(tokens_a_second * hours * _HOUR_S) * tokens // completion_tokens


def best_nano_a_million(tokens_a_second: float, usd_an_hour: float) -> int | None:
    """What a million generated tokens cost on a machine that always works at this speed."""
    if tokens_a_second <= 0:
        return None
    return machine_nano(_MILLION / tokens_a_second, usd_an_hour)
