"""Days and months of the calendar in UTC, as the labels that spending is kept by.

Spending belongs to the label of the moment a request was admitted: a clock that is put back finds what was spent under
that label, and nothing begins anew twice.
"""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta

from pressroom.gateway.money.base import Period

#: The label of a period that never ends.
TOTAL = "total"

_DAY_S = 86_400
_EPOCH = date(1970, 1, 1).toordinal()
_FIRST, _LAST = date.min.toordinal(), date.max.toordinal() - 1


def labels_of(at: float) -> tuple[str, str, str]:
    """The labels of the day, the month and all time that hold this moment (seconds since the epoch): `2026-11-21`,
    `2026-11` and `total`. What is no moment of the calendar counts to its nearest day."""
    return labels_of_day(day_of(at))


def day_of(at: float) -> int:
    """The day that holds this moment, as days since 1970-01-01 in UTC."""
    if not math.isfinite(at):
        return _LAST - _EPOCH if at > 0 else 0
    return min(max(int(at // _DAY_S), _FIRST - _EPOCH), _LAST - _EPOCH)


def labels_of_day(day: int) -> tuple[str, str, str]:
    """As `labels_of`, of a day since 1970-01-01."""
    text = date.fromordinal(_EPOCH + day).isoformat()
    return text, text[:7], TOTAL


def label_of(period: Period, day: int) -> str:
    """The label of the day, month or all time that this day is in."""
    return labels_of_day(day)[_ORDER[period]]


def bounds_of_day(day: int) -> tuple[float, float]:
    """When this day begins, and when the next one does, in seconds since the epoch."""
    return float(day * _DAY_S), float((day + 1) * _DAY_S)


def begins_anew(period: Period, day: int) -> datetime | None:
    """When a budget of this period begins anew that holds on `day`; None: never."""
    if period is Period.TOTAL:
        return None
    this = date.fromordinal(_EPOCH + day)
    following = this + timedelta(days=1)
    if period is Period.MONTH:
        following = (this.replace(day=1) + timedelta(days=32)).replace(day=1) if this.year < 9999 else following
    return datetime(following.year, following.month, following.day, tzinfo=UTC)


_ORDER = {Period.DAY: 0, Period.MONTH: 1, Period.TOTAL: 2}
