"""What a version costs by the token: what its deployment says, else what people set, else what its vendor publishes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any

import sqlalchemy as sa

from pressroom.cost import _published as published
from pressroom.cost._vendors import endpoint, names_like, names_of
from pressroom.cost.base import Price, PriceError
from pressroom.kernel import NotFoundError, Workspace, did_you_mean

#: What stands in a vendor's place for models on machines of one's own.
OWN = "own"
#: For every model of a vendor that has no price of its own.
ANY = "*"
_VENDOR = re.compile(r"[a-z0-9][a-z0-9._:-]{0,199}")
_MODEL = re.compile(r"[\x21-\x7e]{1,200}")

_metadata = sa.MetaData()
# Rows are only added: what a request cost at the time can be found out later. The last row of a day counts, and one
# without a price says that from that day on nothing is set.
_prices = sa.Table(
    "prices",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("vendor", sa.String(200), nullable=False),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("since", sa.String(10), nullable=False),
    # In pico-dollars a token, and nano-dollars a request.
    sa.Column("prompt", sa.BigInteger),
    sa.Column("completion", sa.BigInteger),
    sa.Column("cached", sa.BigInteger),
    sa.Column("request_nano", sa.BigInteger),
    sa.Column("set_at", sa.Float, nullable=False),
    sa.Index("prices_of_a_model", "vendor", "model"),
)


def _first_table(connection: sa.Connection) -> None:
    _metadata.create_all(connection)


@dataclass(frozen=True, kw_only=True, slots=True)
class SetPrice:
    """A price that people set: `price` None takes back what was set before, from that day on. `set_at` in seconds
    since the epoch."""

    vendor: str
    model: str
    since: date
    price: Price | None
    set_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """A price that is known today, of `vendor`/`model`."""

    vendor: str
    model: str
    price: Price


class Prices:
    """The prices of one workspace. Thread-safe; several processes may use it at once."""

    def __init__(self, workspace: Workspace) -> None:
        self._database = workspace.database
        self._database.migrate("prices", (_first_table,))

    def of(
        self,
        metadata: Mapping[str, Any],
        override: Mapping[str, Any] | None = None,
        *,
        name: str = "",
        day: date | None = None,
    ) -> Price | None:
        """The price of a version, from its metadata; None where nobody knows it. `override` is what its deployment
        says, `name` the version's (people may set a price for `own/NAME`), `day` today in UTC if it is not given.

        One small query, and the first time for a vendor 0.2 s to load published prices: for a change of routes, not
        for a request.

        Raises:
            PriceError: the override is not well written.
        """
        day = day or today()
        if override is not None:
            return Price.parse(override, source="the deployment")
        remote = endpoint(metadata)
        if remote is None:
            return self._set((OWN,), name, day) or Price(source="a model of one's own")
        url, model = remote
        names = names_of(url)
        return self._set(names, model, day) or self._of_published_name(url, names, model, day)

    def find(self, asked: str, *, day: date | None = None) -> Price | None:
        """The price of `VENDOR/MODEL`, as `openai/gpt-4o-mini`; None where nobody knows it.

        Raises:
            PriceError: it is not written so.
        """
        vendor, model = parse_model(asked)
        day = day or today()
        found = self._set(names_like(vendor), model, day)
        return found or (None if vendor == OWN else published.of_vendor(vendor, model, day))

    def set(self, asked: str, price: Price, *, since: date | None = None) -> SetPrice:
        """Let `VENDOR/MODEL` (`VENDOR/*` for all others of the vendor, `own/NAME` for a model of one's own) cost this
        much from a day on, today if it is not given.

        Raises:
            PriceError: it is not written so, or the price has what cannot be set.
        """
        if price.tiers or price.services:
            raise PriceError(
                f"the price of {asked!r} has steps", hint="Set the price of the longest prompts that are to be asked."
            )
        return self._write(asked, price, since)

    def unset(self, asked: str, *, since: date | None = None) -> SetPrice:
        """Take back what was set, from a day on.

        Raises:
            PriceError: it is not written so.
            NotFoundError: nothing is set for exactly this on that day.
        """
        vendor, model = parse_model(asked)
        day = since or today()
        said = [one for one in self.history() if one.since <= day]
        # In the order in which they count: the last of these is the one that holds.
        holds = {(one.vendor, one.model): one.price for one in sorted(said, key=lambda one: one.since)}
        if holds.get((vendor, model)) is None:
            known = [f"{of}/{name}" for (of, name), price in holds.items() if price is not None]
            raise NotFoundError(
                f"no price is set for {vendor}/{model} on {day}",
                hint=did_you_mean(f"{vendor}/{model}", known, otherwise=f"Set are {', '.join(known) or 'none'}."),
                asked=asked[:400],
            )
        return self._write(asked, None, since)

    def history(self) -> list[SetPrice]:
        """All that was ever set, in the order in which it was."""
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(_prices).order_by(_prices.c.id)).all()
        return [
            SetPrice(
                vendor=row.vendor,
                model=row.model,
                since=date.fromisoformat(row.since),
                price=_price(row),
                set_at=row.set_at,
            )
            for row in rows
        ]

    def known(self, part: str = "", *, day: date | None = None) -> Iterator[Known]:
        """Every price that holds on a day and whose `vendor/model` has this part in it: those that people set, then
        those that are published and that nobody set anew."""
        day, part = day or today(), part.lower()
        done = set()
        for one in self.history():
            key = one.vendor, one.model
            if key in done or part not in f"{one.vendor}/{one.model}".lower():
                continue
            done.add(key)
            price = self._set((one.vendor,), one.model, day)
            if price is not None:
                yield Known(vendor=one.vendor, model=one.model, price=price)
            else:
                done.discard(key)
        for vendor, model, price in published.every(day):
            if (vendor, model) not in done and part in f"{vendor}/{model}".lower():
                yield Known(vendor=vendor, model=model, price=price)

    def state(self) -> tuple[int, str]:
        """What the prices depend on; where it differs from before, ask for them anew: somebody set one, or the day in
        UTC is another. One small query."""
        with self._database.reading() as connection:
            last = connection.scalar(sa.select(sa.func.max(_prices.c.id)))
        return int(last or 0), today().isoformat()

    def _of_published_name(self, url: str, names: tuple[str, ...], model: str, day: date) -> Price | None:
        """What was set under the name that the published prices have for the vendor, else what they say."""
        vendor = published.vendor_at(url)
        found = None if vendor in names else self._set((vendor,), model, day)
        return found or published.at_address(url, model, day)

    def _set(self, vendors: tuple[str, ...], model: str, day: date) -> Price | None:
        rows = _prices.c
        query = (
            sa.select(_prices)
            .where(rows.vendor.in_(vendors), rows.model.in_({model.lower(), ANY}), rows.since <= day.isoformat())
            .order_by(rows.since.desc(), rows.id.desc())
        )
        with self._database.reading() as connection:
            found = connection.execute(query).all()
        # The model's own before the vendor's for all, then the vendor's most exact name.
        for wanted in (model.lower(), ANY):
            for vendor in vendors:
                row = next((row for row in found if row.vendor == vendor and row.model == wanted), None)
                if row is not None and (price := _price(row)) is not None:
                    return price
        return None

    def _write(self, asked: str, price: Price | None, since: date | None) -> SetPrice:
        vendor, model = parse_model(asked)
        day, now = since or today(), time.time()
        with self._database.begin() as connection:
            connection.execute(
                _prices.insert().values(
                    vendor=vendor,
                    model=model,
                    since=day.isoformat(),
                    prompt=None if price is None else price.prompt,
                    completion=None if price is None else price.completion,
                    cached=None if price is None else price.cached,
                    request_nano=None if price is None else price.request_nano,
                    set_at=now,
                )
            )
        said = None if price is None else replace(price, source="set", since=day.isoformat())
        return SetPrice(vendor=vendor, model=model, since=day, price=said, set_at=now)


def parse_model(asked: str) -> tuple[str, str]:
    """The vendor and the model of `VENDOR/MODEL`, both in small letters.

    Raises:
        PriceError: it is not written so.
    """
    vendor, _, model = asked.strip().lower().partition("/")
    if not _VENDOR.fullmatch(vendor) or not _MODEL.fullmatch(model):
        raise PriceError(
            f"{asked!r:.200} does not name a model of a vendor",
            hint="Write VENDOR/MODEL: openai/gpt-4o-mini, or the host of the vendor: api.example.com/llama-3.3-70b.",
            asked=asked[:400],
        )
    return vendor, model


def names_of_version(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """What a version that a vendor runs may be called as VENDOR/MODEL, in small letters; nothing of one's own."""
    remote = endpoint(metadata)
    if remote is None:
        return ()
    url, model = remote
    return tuple(f"{vendor}/{model.lower()}" for vendor in dict.fromkeys((*names_of(url), published.vendor_at(url))))


def what_to_do(metadata: Mapping[str, Any]) -> str:
    """A hint for who needs a price that nobody knows."""
    url, model = endpoint(metadata) or ("", "MODEL")
    said = f"press cost price set {names_of(url)[-1] or 'VENDOR'}/{model} --prompt USD --completion USD"
    if published.installed():
        return f"Say what a million tokens cost: {said}"
    return f"pip install 'pressroom[vendors]' has the published prices; or say what a million tokens cost: {said}"


def has_published() -> bool:
    """Whether the prices that vendors publish are installed."""
    return published.installed()


def today() -> date:
    """The day in UTC, by which prices and budgets go."""
    return datetime.now(UTC).date()


def _price(row: sa.Row[Any]) -> Price | None:
    if row.prompt is None:
        return None
    return Price(
        prompt=row.prompt,
        completion=row.completion,
        cached=row.cached,
        request_nano=row.request_nano,
        source="set",
        since=row.since,
    )
