"""A wrong price, repaired after the fact: which requests in the ledger cost something else at the right one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import sqlalchemy as sa

from pressroom.cost._rows import NOT_WORKED, REQUEST, TABLE, ledger, rows
from pressroom.cost.base import Price
from pressroom.kernel import Workspace

#: The price of a version by (deployment, branch, digest, day in UTC); None: nobody knows it.
PriceOf = Callable[[str, str, str, date], Price | None]
_BATCH = 1_000
_MOST_PARTS = 256


@dataclass(frozen=True, slots=True)
class Correction:
    """What the request `id` cost by the ledger, earlier corrections included, and what it costs at the right price; in
    nano-dollars."""

    id: str
    before: int
    after: int


@dataclass(kw_only=True, slots=True)
class Repriced:
    """What a repricing has looked at so far: requests, those with another amount, those whose price nobody knows, and
    those of which it cannot be told (several share an id, or several engines read the prompt and the price depends on
    its length); and what those with another amount came to and come to, in nano-dollars."""

    requests: int = 0
    wrong: int = 0
    unknown: int = 0
    ambiguous: int = 0
    before: int = 0
    after: int = 0


class Repricing:
    """Goes through the ledger once, a thousand rows at a time, whatever its length. What was corrected before is part
    of what a request cost, so doing it twice finds nothing the second time.

    Looked at are requests between two moments (seconds since the epoch; `until` does not belong to it) on which an
    engine worked: of the `deployment`, or by one of the versions with these `digests`.
    """

    def __init__(
        self,
        workspace: Workspace,
        price_of: PriceOf,
        *,
        since: float,
        until: float,
        deployment: str | None = None,
        digests: Collection[str] = (),
    ) -> None:
        self._database = workspace.database
        self._price_of = price_of
        self.done = Repriced()
        which: sa.ColumnElement[bool] = rows.digest.in_(list(digests))
        if deployment is not None:
            which = which | (rows.model == deployment)
        self._where = (
            (rows.at >= since)
            & (rows.at < until)
            & (rows.kind == REQUEST)
            & (rows.cache == "")
            & (rows.counted != NOT_WORKED)
            & (rows.digest != "")
            & which
        )
        with self._database.reading() as connection:
            self._there = sa.inspect(connection).has_table(TABLE)
            # What is added while this runs has a price of its own.
            self._last = int(connection.scalar(sa.select(sa.func.max(rows.number))) or 0) if self._there else 0

    def count(self) -> int:
        """How many requests there are to look at."""
        if not self._there:
            return 0
        with self._database.reading() as connection:
            return int(connection.scalar(sa.select(sa.func.count()).select_from(ledger).where(self._where)) or 0)

    def batches(self) -> Iterator[list[Correction]]:
        """The requests that cost something else, in pieces; an empty piece where a thousand were all right. Hand one to
        the ledger before asking for the next."""
        after = 0
        while self._there:
            with self._database.reading() as connection:
                found = connection.execute(
                    sa.select(
                        rows.number, rows.id, rows.at, rows.model, rows.branch, rows.digest,
                        rows.prompt_tokens, rows.cached_tokens, rows.completion_tokens, rows.nano_usd, rows.tries,
                    )
                    .where(self._where, rows.number > after, rows.number <= self._last)
                    .order_by(rows.number)
                    .limit(_BATCH)
                ).all()  # fmt: skip
                if not found:
                    return
                ids = [row.id for row in found]
                corrected = _corrected(connection, ids)
                shared = _shared(connection, ids)
            after = found[-1].number
            yield self._corrections(found, corrected, shared)

    def _corrections(self, found: Iterable[Any], corrected: dict[str, int], shared: set[str]) -> list[Correction]:
        made = []
        for row in found:
            self.done.requests += 1
            if row.id in shared:
                self.done.ambiguous += 1
                continue
            day = datetime.fromtimestamp(row.at, UTC).date()
            price = self._price_of(row.model, row.branch, row.digest, day)
            if price is None:
                self.done.unknown += 1
                continue
            if row.tries > 1 and price.tiers and row.prompt_tokens > price.tiers[0].above:
                self.done.ambiguous += 1
                continue
            before = row.nano_usd + corrected.get(row.id, 0)
            after = price.nano(prompt=row.prompt_tokens, completion=row.completion_tokens, cached=row.cached_tokens)
            if before != after and not _in_parts(before, after, price, row.tries):
                self.done.wrong += 1
                self.done.before += before
                self.done.after += after
                made.append(Correction(row.id, before, after))
        return made


def _in_parts(before: int, after: int, price: Price, tries: int) -> bool:
    """Whether it is the right price of a request that several engines worked on (for several answers to it, say): each
    part was rounded up for itself, and paid what a request costs."""
    return any(
        0 <= before - after - (parts - 1) * price.request_nano < parts
        for parts in range(2, min(tries, _MOST_PARTS) + 1)
    )


def _corrected(connection: sa.Connection, ids: list[str]) -> dict[str, int]:
    """What earlier corrections of these requests come to."""
    query = sa.select(rows.corrects, sa.func.sum(rows.nano_usd)).where(rows.corrects.in_(ids)).group_by(rows.corrects)
    return {row[0]: int(row[1]) for row in connection.execute(query)}


def _shared(connection: sa.Connection, ids: list[str]) -> set[str]:
    """Which of these ids several requests have."""
    query = (
        sa.select(rows.id).where(rows.id.in_(ids), rows.kind == REQUEST).group_by(rows.id).having(sa.func.count() > 1)
    )
    return set(connection.scalars(query))
