"""Prices that vendors publish, as the library genai-prices collects them: the snapshot that was installed with it,
which is never renewed over the network."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, time
from decimal import ROUND_HALF_EVEN, Decimal
from functools import cache
from typing import TYPE_CHECKING

from pressroom.cost._vendors import names_like, names_of
from pressroom.cost.base import NANO, PICO_A_TOKEN, Price, Tier

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

# A request costs so many thousandths of it.
_KILO = 1_000


def installed() -> bool:
    """Whether there is the library; looks without loading it."""
    return _version() is not None


def at_address(url: str, model: str, day: date) -> Price | None:
    """The published price of the model that is asked at this address, or None where none is known."""
    snapshot = _snapshot()
    if snapshot is None:
        return None
    provider = _provider_at(snapshot, url)
    return None if provider is None else _of(snapshot, provider, model, day)


def of_vendor(vendor: str, model: str, day: date) -> Price | None:
    """The published price of the model of a vendor, by the name or the host that it has here."""
    snapshot = _snapshot()
    if snapshot is None:
        return None
    names = names_like(vendor)
    for provider in snapshot.providers:
        if provider.id in names:
            return _of(snapshot, provider, model, day)
    return at_address(f"https://{vendor}/", model, day)


def vendor_at(url: str) -> str:
    """What the published prices call the vendor at this address; its host where they do not know it."""
    snapshot = _snapshot()
    provider = None if snapshot is None else _provider_at(snapshot, url)
    return names_of(url)[-1] if provider is None else provider.id


def every(day: date) -> Iterator[tuple[str, str, Price]]:
    """All that are published for models that are paid by the token, as (vendor, model, price)."""
    snapshot = _snapshot()
    for provider in snapshot.providers if snapshot is not None else ():
        for model in provider.models:
            price = _price(provider, model, day)
            if price is not None:
                yield provider.id, model.id, price


def _provider_at(snapshot: DataSnapshot, url: str) -> Provider | None:
    for provider in snapshot.providers:
        found = re.match(provider.api_pattern, url)
        # The patterns do not say where a host ends: https://api.openai.com.example.org is another one.
        if found is not None and (found.end() == len(url) or url[found.end()] in "/:" or url[found.end() - 1] in "./"):
            return provider
    return None


def _of(snapshot: DataSnapshot, provider: Provider, model: str, day: date) -> Price | None:
    found = provider.find_model(model, all_providers=snapshot.providers)
    return None if found is None else _price(provider, found, day)


def _price(provider: Provider, model: ModelInfo, day: date) -> Price | None:
    """The dearest price of that day, because some vendors have hours: what is set aside must be enough at all."""
    from genai_prices.types import ModelPrice, StartDateConstraint, TimeOfDateConstraint

    listed = [] if isinstance(model.prices, ModelPrice) else model.prices
    constraints = [conditional.constraint for conditional in listed]
    hours = [time(12)]
    for constraint in constraints:
        if isinstance(constraint, TimeOfDateConstraint):
            hours += [constraint.start_time, constraint.end_time]
    moments = [datetime.combine(day, hour.replace(tzinfo=hour.tzinfo or UTC)).astimezone(UTC) for hour in hours]
    prices = [found for moment in moments if (found := _plain(model.get_prices(moment))) is not None]
    if not prices:
        return None
    dearest = max(prices, key=lambda price: (price.completion, price.prompt))
    if not dearest.tiers:
        most = {
            name: max(getattr(price, name) for price in prices) for name in ("prompt", "completion", "request_nano")
        }
        dearest = replace(dearest, **most)
    begun = [c.start_date for c in constraints if isinstance(c, StartDateConstraint) and c.start_date <= day]
    services = []
    variants = [variant.when for variant in model.price_variants or ()]
    for name in dict.fromkeys(when["service_tier"] for when in variants if set(when) == {"service_tier"}):
        other = _plain(model.get_prices(moments[0], {"service_tier": name}))
        if other is not None and other != dearest:
            services.append((name, other))
    return replace(
        dearest,
        services=tuple(services),
        source=f"genai-prices {_version()}: {provider.id}/{model.id}",
        since=max(begun).isoformat() if begun else "",
    )


def _plain(published: ModelPrice) -> Price | None:
    """None where it is not paid by the token."""
    if published.input_mtok is None:
        return None
    # What of an answer has a price of its own (thoughts, quotations) counts as the dearest, because a usage block does
    # not always tell them apart.
    outputs = [published.output_mtok, published.output_reasoning_mtok, published.output_citation_mtok]
    cached = published.input_mtok if published.cache_read_mtok is None else published.cache_read_mtok
    starts = sorted({start for value in (published.input_mtok, cached, *outputs) for start in _starts(value)})
    steps = []
    for above in (0, *starts):
        prompt = _pico(published.input_mtok, above)
        completion = max(_pico(value, above) for value in outputs)
        steps.append(Tier(above=above, prompt=prompt, completion=completion, cached=min(_pico(cached, above), prompt)))
    # Only dearer steps: a cheaper one would make a bound of the tokens no bound of the price.
    rising = steps[:1]
    for step in steps[1:]:
        last = rising[-1]
        rising.append(
            Tier(
                above=step.above,
                prompt=max(step.prompt, last.prompt),
                completion=max(step.completion, last.completion),
                cached=max(step.cached, last.cached),
            )
        )
    requests = published.requests_kcount
    a_request = requests if isinstance(requests, Decimal) else Decimal(0)
    first = rising[0]
    return Price(
        prompt=first.prompt,
        completion=first.completion,
        cached=first.cached,
        request_nano=int((a_request * NANO / _KILO).to_integral_value(ROUND_HALF_EVEN)),
        tiers=tuple(rising[1:]),
    )


def _starts(value: Decimal | TieredPrices | None) -> list[int]:
    return [] if value is None or isinstance(value, Decimal) else [tier.start for tier in value.tiers]


def _pico(value: Decimal | TieredPrices | None, above: int) -> int:
    """Of a million tokens in dollars, for a prompt with more than `above` tokens; some of them were computed with
    binary fractions and are a hair off."""
    if value is None:
        return 0
    if not isinstance(value, Decimal):
        reached = [tier.price for tier in value.tiers if above >= tier.start]
        value = reached[-1] if reached else value.base
    return int((value * PICO_A_TOKEN).to_integral_value(ROUND_HALF_EVEN))


@cache
def _version() -> str | None:
    try:
        return importlib.metadata.version("genai-prices")
    except importlib.metadata.PackageNotFoundError:
        return None


def _snapshot() -> DataSnapshot | None:
    """What came with the library; 0.2 s to load, so only when a price is looked up."""
    if not installed():
        return None
    from genai_prices.data_snapshot import get_snapshot

    return get_snapshot()
