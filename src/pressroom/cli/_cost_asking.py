"""What the options of `press cost` mean: spans of time, prices, and what is priced against."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pressroom.cost import Price, Prices
    from pressroom.deploy import Deployment
    from pressroom.kernel import Workspace
    from pressroom.registry.base import Version

_UNITS = {"min": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
_SPAN = re.compile(r"([0-9]{1,5})\s*(min|h|d|w)")
_RATIO = re.compile(r"[0-9]{1,3}(\.[0-9]{1,4})?")
_TWO = re.compile(r"\s*([0-9.]{1,20})\s*/\s*([0-9.]{1,20})\s*")


def moment(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """7d (so long ago), 2026-11-01 (when that day begins in UTC) or a time of a day, in seconds since the epoch."""
    if value is None:
        return None
    text = value.strip()
    ago = _SPAN.fullmatch(text)
    if ago is not None:
        return time.time() - int(ago[1]) * _UNITS[ago[2]]
    try:
        when = datetime.fromisoformat(text)
        return (when if when.tzinfo is not None else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{value!r} is neither 24h, 7d or 4w (ago) nor a day as 2026-11-01") from None


def day(context: click.Context, parameter: click.Parameter, value: str | None) -> date | None:
    """2026-11-01."""
    if value is None:
        return None
    try:
        return date.fromisoformat(value.strip())
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a day, as 2026-11-01") from None


def ratio(context: click.Context, parameter: click.Parameter, value: str) -> Fraction:
    """A number from 0.01 to 100 with at most four decimals, kept exactly."""
    text = value.strip()
    if not _RATIO.fullmatch(text) or not Fraction(1, 100) <= Fraction(text) <= 100:
        raise click.BadParameter(f"{value!r} is not a number from 0.01 to 100 with at most four decimals")
    return Fraction(text)


def price_written(text: str, *, source: str) -> Price | None:
    """The price in `0.15/0.60` or `prompt=0.15,completion=0.60,cached=0.075`; None where it is neither.

    Raises:
        PriceError: it is one of these, and no price.
    """
    from pressroom.cost import Price

    two = _TWO.fullmatch(text)
    if two is not None:
        return Price.parse({"prompt": two[1], "completion": two[2]}, source=source)
    if "=" in text:
        parts = (part.partition("=") for part in text.split(","))
        return Price.parse({name.strip(): value.strip() for name, _, value in parts}, source=source)
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Against:
    """What traffic is priced against: `name` for people, whether it runs on `own` machines, and then how many tokens a
    second it generates at its best, if that was measured."""

    name: str
    price: Price
    own: bool = False
    tokens_a_second: float | None = None


class Priced:
    """Prices of versions by their digest, and of what people name."""

    def __init__(self, workspace: Workspace) -> None:
        from pressroom.cost import Prices
        from pressroom.deploy import Deployments
        from pressroom.registry import Registry

        self.prices: Prices = Prices(workspace)
        self.versions: dict[str, Version] = {version.digest: version for version in Registry(workspace).list()}
        self.deployments: dict[str, Deployment] = {wish.name: wish for wish in Deployments(workspace).list()}
        self._known: dict[Any, Price | None] = {}

    def vendors(self) -> dict[str, Price]:
        """The models of vendors that are registered here and have a price."""
        found = {}
        for version in self.versions.values():
            price = self.prices.of(version.metadata, name=version.name) if is_remote(version.metadata) else None
            if price is not None and not price.free:
                found[version.name] = price
        return found

    def of_row(self, deployment: str, branch: str, digest: str, day: date) -> Price | None:
        """What a version costs by the token on a day, as that route of that deployment; None where it is not known."""
        key = deployment, branch, digest, day
        if key not in self._known:
            version = self.versions.get(digest)
            self._known[key] = (
                None
                if version is None
                else self.prices.of(
                    version.metadata, self._said(deployment, branch, digest), name=version.name, day=day
                )
            )
        return self._known[key]

    def against(self, asked: str) -> Against:
        """The price, model or route that is meant.

        Raises:
            PriceError: it is none, or nobody knows its price.
        """
        from pressroom.cost import PriceError

        price = price_written(asked, source="given")
        if price is not None:
            return Against(name=asked, price=price)
        name, _, route = asked.partition("/")
        wish = self.deployments.get(asked) or self.deployments.get(name)
        ways = [way for way in wish.ways if wish.name == asked or way.name == route] if wish is not None else []
        if wish is not None and len(ways) > 1:
            routes = ", ".join(f"{wish.name}/{way.name}" for way in ways)
            raise PriceError(f"{asked} has several routes", hint=f"Name one: {routes}.", asked=asked)
        if ways:
            return self._known_price(asked, self.versions.get(ways[0].digest), ways[0].price)
        named = [version for version in self.versions.values() if asked in (version.name, _plain(version))]
        if named:
            return self._known_price(asked, named[-1], None)
        if "/" in asked:
            found = self.prices.find(asked)
            if found is not None:
                return Against(name=asked, price=found)
        raise PriceError(
            f"{asked!r:.200} is no deployment, no registered model, no model with a known price and no price",
            hint="Write the name of a deployment, VENDOR/MODEL as openai/gpt-4o-mini (`press cost prices` lists those "
            "that are known), or a price in US dollars for a million tokens as 0.15/0.60.",
            asked=asked[:400],
        )

    def meant(self, asked: str) -> tuple[str | None, list[str]]:
        """The deployment, and the digests of the versions, that `asked` names: a deployment, a registered model, or
        VENDOR/MODEL.

        Raises:
            NotFoundError: nothing is called so.
        """
        from pressroom.cost import names_of_version
        from pressroom.kernel import NotFoundError, did_you_mean

        digests = [
            version.digest
            for version in self.versions.values()
            if asked in (version.name, _plain(version)) or asked.lower() in names_of_version(version.metadata)
        ]
        deployment = asked if asked in self.deployments else None
        if deployment is None and not digests:
            known = {*self.deployments, *(version.name for version in self.versions.values())}
            raise NotFoundError(
                f"{asked!r:.200} is no deployment, no registered model and no vendor's model that is registered",
                hint=did_you_mean(asked, known, otherwise="`press list` and `press ps` have their names."),
                asked=asked[:400],
            )
        return deployment, digests

    def _known_price(self, asked: str, version: Version | None, said: Mapping[str, Any] | None) -> Against:
        from pressroom.cost import PriceError, what_to_do

        metadata = version.metadata if version is not None else {}
        price = self.prices.of(metadata, said, name=version.name if version is not None else "")
        if price is None:
            raise PriceError(f"nobody knows the price of {asked}", hint=what_to_do(metadata), asked=asked)
        return Against(name=asked, price=price, own=not is_remote(metadata), tokens_a_second=best_speed(version))

    def _said(self, deployment: str, branch: str, digest: str) -> Mapping[str, Any] | None:
        wish = self.deployments.get(deployment)
        # A new version takes its share as `own~new`; a deployment's only route has no name in the ledger.
        name = branch.partition("~")[0]
        for way in wish.ways if wish is not None else ():
            if way.digest == digest and name in ("", way.name):
                return way.price
        return None


def unheard_of(workspace: Workspace, prices: Prices, asked: str) -> str:
    """What may be wrong with the name of who gets a price; '' where somebody here, or a published price, has it.

    Raises:
        PriceError: it is not written as VENDOR/MODEL.
    """
    from pressroom.cost import names_of_version
    from pressroom.kernel import did_you_mean
    from pressroom.registry import Registry

    if prices.find(asked) is not None:
        return ""
    vendor, _, model = asked.strip().lower().partition("/")
    versions = Registry(workspace).list()
    if vendor == "own":
        names = {f"own/{version.name.lower()}" for version in versions if not is_remote(version.metadata)}
    else:
        names = {name for version in versions for name in names_of_version(version.metadata)}
    name = f"{vendor}/{model}"
    known = {*names, *(f"{one.vendor}/{one.model}" for one in prices.known(vendor))}
    if name in known or (model == "*" and any(one.startswith(f"{vendor}/") for one in known)):
        return ""
    return (
        f"no model that is registered here is called {name}, and no published price: it counts once one is. "
        + did_you_mean(name, known, otherwise="")
    ).strip()


def best_speed(version: Version | None) -> float | None:
    """The most tokens a second that the sheet of a version has, at whatever number of clients."""
    if version is None:
        return None
    found = [
        float(figure.value)
        for figure in version.sheet
        if figure.name.startswith("tokens_per_second_") and isinstance(figure.value, int | float) and figure.value > 0
    ]
    return max(found, default=None)


def _plain(version: Version) -> str:
    return f"{version.name}:{version.number}"


def is_remote(metadata: Mapping[str, Any]) -> bool:
    """Whether a version is a vendor's model."""
    return metadata.get("format") == "remote"
