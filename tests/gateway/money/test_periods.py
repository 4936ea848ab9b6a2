"""Days and months of UTC."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from pressroom.gateway.money import Period, labels_of
from pressroom.gateway.money.periods import begins_anew, bounds_of_day, day_of, label_of


def at(*moment: int) -> float:
    return datetime(*moment, tzinfo=UTC).timestamp()  # type: ignore[misc, arg-type]


@pytest.mark.parametrize(
    ("moment", "labels"),
    [
        (at(2026, 11, 21, 8), ("2026-11-21", "2026-11", "total")),
        (at(2026, 12, 31, 23, 59, 59), ("2026-12-31", "2026-12", "total")),
        (at(2027, 1, 1), ("2027-01-01", "2027-01", "total")),
        (at(2028, 2, 29, 12), ("2028-02-29", "2028-02", "total")),
        (0.0, ("1970-01-01", "1970-01", "total")),
        (-0.5, ("1969-12-31", "1969-12", "total")),
        (at(2026, 11, 22) - 1e-6, ("2026-11-21", "2026-11", "total")),
    ],
)
def test_labels(moment: float, labels: tuple[str, str, str]) -> None:
    assert labels_of(moment) == labels
    low, high = bounds_of_day(day_of(moment))
    assert low <= moment < high


@pytest.mark.parametrize("moment", [math.nan, math.inf, -math.inf, 1e300, -1e300, 1e12])
def test_what_is_no_moment_has_labels_too(moment: float) -> None:
    day, month, total = labels_of(moment)
    assert day.startswith(month) and total == "total"
    for period in Period:
        begins_anew(period, day_of(moment))


def test_when_a_budget_begins_anew() -> None:
    day = day_of(at(2026, 12, 31, 8))
    assert begins_anew(Period.DAY, day) == begins_anew(Period.MONTH, day) == datetime(2027, 1, 1, tzinfo=UTC)
    assert begins_anew(Period.MONTH, day_of(at(2026, 2, 1))) == datetime(2026, 3, 1, tzinfo=UTC)
    assert begins_anew(Period.TOTAL, day) is None
    assert label_of(Period.MONTH, day) == "2026-12"
