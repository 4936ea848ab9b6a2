"""What `press cost` shows, put together: what was spent, what the own machine's tokens cost, and when they pay."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pressroom.cli._cost_asking import Against, Priced, best_speed, is_remote

if TYPE_CHECKING:
    from pressroom.cost import BreakEven, Spent, Work
    from pressroom.kernel import Workspace

_DAY_S = 86_400


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What a version on engines of one's own made: its share of what the machine cost (by the time that its requests
    took), and what a million of its tokens cost so; and at its best, by its sheet. Nano-dollars, None: not known."""

    work: Work
    nano: int | None
    nano_a_million: int | None
    tokens_a_second: float | None
    best_nano_a_million: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Between `since` and `until`, seconds since the epoch. `machine` has the share of each group in what the machine
    cost, in their order: by the time that its requests took, of a day by the hours it was on. None where nobody said
    what the machine costs."""

    since: float
    until: float
    by: str
    groups: Sequence[Spent]
    total: Spent
    machine: Sequence[int] | None
    machine_nano: int | None
    powered_s: float
    usd_per_hour: float
    month_hours: float
    made: Sequence[Made]
    even: Sequence[BreakEven]
    #: Requests that vendors answered at a price that nobody knew then, or that was wrong.
    unpriced: int
    #: Which models these are, as VENDOR/MODEL, where they are still registered.
    unpriced_models: Sequence[str]
    #: Whether `even` is about what ran on engines of one's own; else about all requests, because nothing did.
    own_traffic: bool
    #: Tokens of that traffic, and what they would be in a month at this pace.
    tokens: int
    month_tokens: int

    @property
    def busy_machine(self) -> int | None:
        """What of the machine's cost the groups share: nothing, where no engine of one's own worked."""
        return None if self.machine is None else sum(self.machine)


def engines_elsewhere() -> list[str]:
    """The engines that pass requests on to vendors."""
    from pressroom.engines import engine_class, engine_names
    from pressroom.kernel import PluginError

    found = []
    for name in engine_names():
        try:
            if engine_class(name).elsewhere:
                found.append(name)
        except PluginError:  # one of another distribution that does not load: it has answered nothing
            continue
    return found


def make_report(
    workspace: Workspace,
    *,
    since: float,
    until: float,
    by: str,
    usd_per_hour: float,
    month_hours: float,
    against: Sequence[str] = (),
) -> Report:
    """Raises PriceError where something to compare with has no price."""
    from pressroom import cost

    priced = Priced(workspace)
    spending = cost.Spending(workspace, since=since, until=until, elsewhere=engines_elsewhere())
    groups = spending.by(by)
    total = cost.together(groups)
    spans = cost.Powered(workspace).spans(since, until)
    powered = sum(end - begin for begin, end in spans)
    known = usd_per_hour > 0
    machine_nano = cost.machine_nano(powered, usd_per_hour) if known else None
    work = spending.own()
    parts = cost.apportioned(machine_nano or 0, [one.microseconds for one in work])
    made = []
    for one, nano in zip(work, parts, strict=True):
        speed = best_speed(priced.versions.get(one.digest))
        made.append(
            Made(
                work=one,
                nano=nano if known else None,
                nano_a_million=cost.per_million(nano, one.tokens) if known else None,
                tokens_a_second=speed,
                best_nano_a_million=cost.best_nano_a_million(speed, usd_per_hour) if known and speed else None,
            )
        )
    own = any(one.tokens for one in work)
    tokens = sum(one.tokens for one in work) if own else total.tokens
    completion = sum(one.completion_tokens for one in work) if own else total.completion_tokens
    even = []
    if known and tokens:
        speed = made[0].tokens_a_second if made else _fastest(priced)
        most = cost.capacity(speed, hours=month_hours, tokens=tokens, completion_tokens=completion) if speed else None
        month_nano = cost.machine_nano(month_hours * 3_600, usd_per_hour)
        for vendor in _vendors(priced, against):
            sums = spending.at(vendor.price, "deployment", own_only=own)
            even.append(
                cost.BreakEven(
                    vendor=vendor.name,
                    vendor_nano=sum(one.replayed_nano_usd for one in sums),
                    tokens=tokens,
                    month_nano=month_nano,
                    capacity=most,
                )
            )
    if by == "day" and machine_nano is not None:
        on = _on_by_day(spans)
        idle = [cost.Spent(name=day) for day in on.keys() - {one.name for one in groups}]
        groups = sorted([*groups, *idle], key=lambda one: one.name)
        weights = [on.get(one.name, 0) for one in groups]
    else:
        weights = [one.own_microseconds for one in groups]
    # Free is what has a price of nothing; the others were counted as nothing for want of one.
    today = cost.today()
    unpriced = 0
    unpriced_models: dict[str, None] = {}
    for deployment, branch, digest, requests in spending.unpaid():
        price = priced.of_row(deployment, branch, digest, today)
        if price is None or not price.free:
            unpriced += requests
            version = priced.versions.get(digest)
            names = cost.names_of_version(version.metadata) if version is not None else ()
            unpriced_models |= dict.fromkeys(names[-1:])
    seconds = max(min(until, time.time()) - since, 1.0)
    return Report(
        since=since,
        until=until,
        by=by,
        groups=groups,
        total=total,
        machine=None if machine_nano is None else cost.apportioned(machine_nano, weights),
        machine_nano=machine_nano,
        powered_s=powered,
        usd_per_hour=usd_per_hour,
        month_hours=month_hours,
        made=made,
        even=sorted(even, key=lambda one: one.vendor_nano),
        unpriced=unpriced,
        unpriced_models=list(unpriced_models),
        own_traffic=own,
        tokens=tokens,
        month_tokens=int(tokens * _month_s() / seconds),
    )


def as_record(report: Report) -> dict[str, Any]:
    """The report as JSON: amounts in nano-dollars."""
    machine: Sequence[int | None] = [None] * len(report.groups) if report.machine is None else report.machine
    groups = [{**_spent(one), "machine_nano_usd": part} for one, part in zip(report.groups, machine, strict=True)]
    if report.by == "language":
        ratios = english(report.groups)
        groups = [{**group, "tokens_to_english": _rounded(ratios.get(group["name"]))} for group in groups]
    return {
        "since": round(report.since, 3),
        "until": round(report.until, 3),
        "by": report.by,
        "groups": groups,
        "total": _spent(report.total),
        "unpriced_requests": report.unpriced,
        "unpriced_models": list(report.unpriced_models),
        "machine": {
            "powered_s": round(report.powered_s, 3),
            "usd_per_hour": report.usd_per_hour or None,
            "nano_usd": report.machine_nano,
        },
        "own": [
            {
                "deployment": one.work.deployment,
                "branch": one.work.branch,
                "ref": one.work.ref,
                "digest": one.work.digest,
                "engine": one.work.engine,
                "requests": one.work.requests,
                "prompt_tokens": one.work.prompt_tokens,
                "completion_tokens": one.work.completion_tokens,
                "busy_s": one.work.microseconds / 1e6,
                "nano_usd": one.nano,
                "nano_usd_per_million": one.nano_a_million,
                "tokens_per_second": _rounded(one.tokens_a_second),
                "best_nano_usd_per_million_generated": one.best_nano_a_million,
            }
            for one in report.made
        ],
        "break_even": [
            {
                "vendor": one.vendor,
                "nano_usd_per_million": one.vendor_nano_a_million,
                "tokens_per_month": one.tokens_a_month,
                "most_tokens_per_month": one.capacity,
                "reached": one.reached,
            }
            for one in report.even
        ],
        "traffic": {
            "own": report.own_traffic,
            "tokens": report.tokens,
            "tokens_per_month": report.month_tokens,
            "month_hours": report.month_hours,
        },
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _spent(one: Spent) -> dict[str, Any]:
    import dataclasses

    record = dataclasses.asdict(one)
    record["own_busy_s"] = record.pop("own_microseconds") / 1e6
    return {**record, "tokens": one.tokens, "vendor_nano_usd": one.vendor_nano_usd}


def _on_by_day(spans: Sequence[tuple[float, float]]) -> dict[str, int]:
    """For how many microseconds servers ran on each day in UTC on which they did."""
    found: dict[str, int] = {}
    for begin, end in spans:
        while begin < end:
            midnight = min((begin // _DAY_S + 1) * _DAY_S, end)
            day = datetime.fromtimestamp(begin, UTC).date().isoformat()
            found[day] = found.get(day, 0) + int((midnight - begin) * 1e6)
            begin = midnight
    return found


def _vendors(priced: Priced, against: Sequence[str]) -> list[Against]:
    if against:
        return [priced.against(asked) for asked in dict.fromkeys(against)]
    return [Against(name=name, price=price) for name, price in priced.vendors().items()]


def _fastest(priced: Priced) -> float | None:
    """Of the fastest model of one's own that is deployed, where none has answered yet."""
    digests = {way.digest for wish in priced.deployments.values() for way in wish.ways}
    speeds = [
        speed
        for digest in digests
        if (version := priced.versions.get(digest)) is not None
        and not is_remote(version.metadata)
        and (speed := best_speed(version)) is not None
    ]
    return max(speeds, default=None)


def _month_s() -> float:
    from pressroom.cost import MONTH_HOURS

    return MONTH_HOURS * 3_600.0


def english(groups: Sequence[Spent]) -> Mapping[str, float | None]:
    """Tokens of a request in each language, for one in English; None where there was none in English."""
    means = {one.name: one.tokens / (one.requests - one.cached) for one in groups if one.requests > one.cached}
    base = means.get("en")
    return {name: mean / base if base else None for name, mean in means.items()}
