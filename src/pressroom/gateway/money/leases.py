"""What the owner of the budgets and its worker processes say to each other.

A worker decides on its requests within leases: amounts of a resource that the owner has set aside for it. A resource is
a budget in one period (a pot), or of a key with limits the requests and tokens of its minutes and what it runs at once.

    worker                                     owner
    Hello: who I am, what I hold and spent ->
                                            <- Welcome: the budgets, and for how long leases hold
    Ask: for a request, or before I am low ->
                                            <- Answer: granted all of it, or why not
                                            <- Recall: somebody else needs what you do not use
    Report: what I spent, hold, give back  ->
                                            <- Seen: your leases hold from when you sent that

Both sides keep one number for each resource, the balance: what was granted, less what was spent of it. Reports state
it, and state spending as sums since the worker began, so that a lost or repeated message counts nothing twice. A lease
holds until `lease_s` after the last report that the owner has seen; then the worker uses nothing more of it for new
requests. What the owner takes back of it without being given it, it takes once the worker's process is gone and what it
had settled has been counted from its rows in the ledger.

Here are the messages only: plain data, without any transport.
"""

from __future__ import annotations

from dataclasses import dataclass

from pressroom.gateway.money.base import Budget

#: ("pot", scope, name, unit, period, label), or ("requests" | "tokens" | "parallel", key).
Resource = tuple[str, ...]
#: Key, team, deployment and day (since 1970-01-01).
LineKey = tuple[str, str, str, int]
#: A resource, what is needed of it at least, what at best, and what the request takes of it in all.
Need = tuple[Resource, int, int, int]

#: Days for which worker and owner remember the sums of a line, back from the newest day: the worker that of its
#: requests, the owner that of its reports, so that neither counts on what the other has forgotten.
DAYS_KEPT = 40


@dataclass(frozen=True, slots=True)
class Spent:
    """What the requests of one line came to since the worker began."""

    line: LineKey
    tokens: int
    nano_usd: int


@dataclass(frozen=True, slots=True)
class Hello:
    """The first word on a new connection. `session` is the worker's for its whole life."""

    session: str
    pid: int
    lines: tuple[Spent, ...]
    balances: tuple[tuple[Resource, int], ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """For `needs`: all of them or none; one that needs nothing at least is granted what there is. `forced`: running
    requests have it already, of a budget that was set meanwhile. `limits` of the key whose rates are among them:
    requests and tokens a minute, in parallel. `at` is the time of the wall, for the answer's words."""

    number: int
    needs: tuple[Need, ...]
    limits: tuple[int | None, int | None, int | None] = (None, None, None)
    forced: bool = False
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """`lines` and `balances` that changed since the last one; `returned` of the rates' buckets, unused; `seen`, the
    last grant that is in the balances; `recalled`, the recall it answers (0: none)."""

    number: int
    seen: int
    recalled: int
    lines: tuple[Spent, ...]
    balances: tuple[tuple[Resource, int], ...]
    returned: tuple[tuple[Resource, int], ...]


@dataclass(frozen=True, slots=True)
class Welcome:
    """The budgets that are in force, now and whenever they change."""

    lease_s: float
    budgets: tuple[Budget, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A `Refused` as data."""

    short: str
    status: int
    message: str
    type: str
    code: str | None
    retry_after_s: int | None


@dataclass(frozen=True, slots=True)
class Answer:
    """To the ask of this number: `grant` counts the grants of this worker, from 1; 0 where it is refused."""

    number: int
    grant: int
    granted: tuple[tuple[Resource, int], ...]
    refusal: Refusal | None


@dataclass(frozen=True, slots=True)
class Recall:
    """Give back what you do not use of these."""

    number: int
    resources: tuple[Resource, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """The report of this number has arrived."""

    number: int


FromWorker = Hello | Ask | Report
FromOwner = Welcome | Answer | Recall | Seen


def pot_of(budget: Budget, label: str) -> Resource:
    """A budget in the period of this label."""
    return ("pot", budget.scope.value, budget.name, budget.unit.value, budget.period.value, label)
