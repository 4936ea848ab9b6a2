"""What was spent: sums over the ledger, by whom and for what, and what the same requests would cost elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import sqlalchemy as sa

from pressroom.cost._rows import REQUEST, TABLE, day_of, ledger, nano_at, rows
from pressroom.cost.base import Price
from pressroom.kernel import Workspace

#: By what spending can be summed: `deployment` is the name that was asked, `branch` a way of it to answer, `model` the
#: version that answered, `day` in UTC, `tag` what clients said in a header, `user` the hash of a client's user.
GROUPS = ("key", "team", "deployment", "language", "day", "branch", "model", "tag", "user")
_DAY_S = 86_400
_MICRO = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """The requests of one group ('' where nobody said, `2026-11-21` of a day). `nano_usd` is what the ledger says they
    cost, `own_nano_usd` the part of it that is charged for engines of one's own. Tokens and seconds of work are those
    of engines, of one's own and of vendors; an answer from the cache has neither."""

    name: str
    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    own_tokens: int = 0
    vendor_tokens: int = 0
    own_microseconds: int = 0
    nano_usd: int = 0
    own_nano_usd: int = 0

    @property
    def vendor_nano_usd(self) -> int:
        return self.nano_usd - self.own_nano_usd

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


def together(spent: Iterable[Spent], name: str = "") -> Spent:
    """The sum of several groups."""
    listed = list(spent)
    fields = [field.name for field in dataclasses.fields(Spent) if field.name != "name"]
    return Spent(name=name, **{field: sum(getattr(one, field) for one in listed) for field in fields})


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What one version did on engines of one's own, for one branch of a deployment."""

    deployment: str
    branch: str
    ref: str
    digest: str
    engine: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    microseconds: int

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """The requests of one group, as they were paid and as they would be at another price; nano-dollars."""

    name: str
    requests: int
    tokens: int
    completion_tokens: int
    nano_usd: int
    replayed_nano_usd: int


class Spending:
    """The sums of one workspace between two moments (seconds since the epoch; `until` does not belong to it).
    `elsewhere` names the engines that pass requests on to vendors. Only reads."""

    def __init__(
        self, workspace: Workspace, *, since: float, until: float, elsewhere: Iterable[str] = ("vendor",)
    ) -> None:
        self._database = workspace.database
        self._elsewhere = tuple(elsewhere)
        self._span = (rows.at >= since) & (rows.at < until)
        with self._database.reading() as connection:
            self._there = sa.inspect(connection).has_table(TABLE)
            self._dialect = connection.dialect.name

    def by(self, group: str) -> list[Spent]:
        """One sum for each group, the dearest first (days in their order)."""
        asked = sa.case((rows.kind == REQUEST, 1), else_=0)
        work = sa.case((rows.cache == "", 1), else_=0)
        vendor = sa.case((rows.engine.in_(self._elsewhere), 1), else_=0) * work
        tokens = rows.prompt_tokens + rows.completion_tokens
        found = self._sums(
            group,
            requests=sa.func.sum(asked),
            cached=sa.func.sum(asked * (1 - work)),
            prompt_tokens=sa.func.sum(rows.prompt_tokens * work),
            completion_tokens=sa.func.sum(rows.completion_tokens * work),
            own_tokens=sa.func.sum(tokens * (work - vendor)),
            vendor_tokens=sa.func.sum(tokens * vendor),
            own_microseconds=sa.func.sum(rows.total_s * (work - vendor)) * _MICRO,
            nano_usd=sa.func.sum(rows.nano_usd),
            own_nano_usd=sa.func.sum(rows.nano_usd * (1 - vendor)),
        )
        spent = [Spent(name=name, **sums) for name, sums in found]
        return sorted(spent, key=lambda one: one.name if group == "day" else (-one.nano_usd, -one.tokens, one.name))

    def own(self) -> list[Work]:
        """What ran on engines of one's own, the most tokens first."""
        columns = (rows.model, rows.branch, rows.ref, rows.digest, rows.engine)
        query = (
            sa.select(
                *columns,
                sa.func.sum(sa.case((rows.kind == REQUEST, 1), else_=0)).label("requests"),
                sa.func.sum(rows.prompt_tokens).label("prompt_tokens"),
                sa.func.sum(rows.completion_tokens).label("completion_tokens"),
                sa.func.sum(rows.total_s).label("seconds"),
            )
            .where(self._span, self._worked_here())
            .group_by(*columns)
        )
        done = [
            Work(
                deployment=row.model,
                branch=row.branch,
                ref=row.ref,
                digest=row.digest,
                engine=row.engine,
                requests=int(row.requests),
                prompt_tokens=int(row.prompt_tokens),
                completion_tokens=int(row.completion_tokens),
                microseconds=int(row.seconds * _MICRO),
            )
            for row in self._all(query)
        ]
        return sorted(done, key=lambda one: (-one.tokens, one.deployment, one.branch, one.ref))

    def unpaid(self) -> list[tuple[str, str, str, int]]:
        """(deployment, branch, digest, requests) of what vendors answered for nothing: it was free, or nobody knew the
        price and nobody has repaired it since."""
        others = ledger.alias()
        repaired = sa.exists().where(others.c.corrects == rows.id)
        columns = (rows.model, rows.branch, rows.digest)
        query = (
            sa.select(*columns, sa.func.count().label("requests"))
            .where(
                self._span,
                rows.kind == REQUEST,
                rows.cache == "",
                rows.engine.in_(self._elsewhere),
                rows.nano_usd == 0,
                rows.prompt_tokens + rows.completion_tokens > 0,
                ~repaired,
            )
            .group_by(*columns)
        )
        return [(row.model, row.branch, row.digest, int(row.requests)) for row in self._all(query)]

    def at(
        self,
        price: Price,
        group: str,
        *,
        ratio: Fraction = Fraction(1),
        deployment: str | None = None,
        own_only: bool = False,
    ) -> list[Replayed]:
        """What the same requests would cost at `price`, row by row as the ledger counts; answers from the cache cost
        nothing there either. `ratio`: tokens of the other tokenizer for one of those counted."""
        where = [rows.cache == ""]
        # What corrects a row counts for what was paid, and is no request that could be asked elsewhere.
        asked = sa.case((rows.kind == REQUEST, 1), else_=0)
        if deployment is not None:
            where.append(rows.model == deployment)
        if own_only:
            where.append(self._worked_here())
        found = self._sums(
            group,
            *where,
            requests=sa.func.sum(asked),
            tokens=sa.func.sum(rows.prompt_tokens + rows.completion_tokens),
            completion_tokens=sa.func.sum(rows.completion_tokens),
            nano_usd=sa.func.sum(rows.nano_usd),
            replayed_nano_usd=sa.func.sum(nano_at(price, ratio) * asked),
        )
        done = [Replayed(name=name, **sums) for name, sums in found]
        return sorted(
            done, key=lambda one: one.name if group == "day" else (-one.replayed_nano_usd, -one.tokens, one.name)
        )

    def _worked_here(self) -> sa.ColumnElement[bool]:
        return (rows.cache == "") & (rows.engine != "") & rows.engine.not_in(self._elsewhere)

    def _sums(
        self, group: str, *where: sa.ColumnElement[bool], **sums: sa.ColumnElement[Any]
    ) -> list[tuple[str, dict[str, int]]]:
        columns = self._columns(group)
        query = (
            sa.select(*columns, *(sums[name].label(f"sum_{name}") for name in sums))
            .where(self._span, *where)
            .group_by(*columns)
        )
        count = len(columns)
        # PostgreSQL sums 64 bits to a Decimal, and floats stay floats: whole numbers leave here.
        return [
            (_named(group, row[:count]), dict(zip(sums, (int(value or 0) for value in row[count:]), strict=True)))
            for row in self._all(query)
        ]

    def _columns(self, group: str) -> list[sa.ColumnElement[Any]]:
        assert group in GROUPS, group
        if group == "day":
            return [day_of(self._dialect)]
        if group == "branch":
            return [rows.model, rows.branch]
        return [rows[{"deployment": "model", "model": "ref"}.get(group, group)]]

    def _all(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        if not self._there:  # nothing was ever asked here
            return []
        with self._database.reading() as connection:
            return connection.execute(query).all()


def _named(group: str, values: Sequence[Any]) -> str:
    if group == "day":
        return datetime.fromtimestamp(int(values[0]) * _DAY_S, UTC).date().isoformat()
    return "/".join(str(value) for value in values if value)
