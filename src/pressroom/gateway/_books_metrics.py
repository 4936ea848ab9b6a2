"""Figures of what is between a client and the engines: routes, cache, budgets and the ledger. Made at the scrape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from pressroom.gateway._grant import Books
    from pressroom.gateway.cache import Cache
    from pressroom.gateway.policy import Steerings
    from pressroom.gateway.routes import RouteTable

_ROUTE_COUNTS = (
    ("requests", "requests", "Requests that came to a route of a deployment, retries not counted."),
    ("won", "answers", "Requests whose answer a route gave."),
    ("failed", "failures", "Tries on a route that failed by its fault."),
    ("retries", "retries", "Requests sent to the same route again."),
    ("fallbacks", "fallbacks", "Requests that came to a route because another had failed."),
    ("hedges", "hedges", "Requests that came to a route because another was slow."),
    ("passed_over", "passed_over", "Requests whose turn it was, and that went to another."),
    ("opened", "breaker_opened", "Times that a route failed too often to be asked for a while."),
    ("shadows", "copies", "Copies sent to a route for comparison."),
    ("shadows_failed", "copies_failed", "Copies that were not answered."),
    ("shadows_skipped", "copies_skipped", "Copies not sent, because too many were under way."),
    ("compared", "copies_compared", "Copies sent to a route for comparison, and compared."),
    ("equal", "copies_equal", "Copies whose answer was the same as the one that was sent."),
)
_CACHE_COUNTS = (
    ("hits", "exact", "hit"),
    ("meaning_hits", "meaning", "hit"),
    ("misses", "", "miss"),
)
_STATES = {"closed": 0, "half_open": 1, "open": 2}


class BooksFigures:
    """Collects them from where they are counted; on the event loop."""

    def __init__(self, routes: RouteTable, steerings: Steerings, cache: Cache, books: Books) -> None:
        self._routes = routes
        self._steerings = steerings
        self._cache = cache
        self._books = books

    def collect(self) -> Iterable[Metric]:
        """Every family."""
        yield from self._of_routes()
        yield from self._of_cache()
        yield from self._of_budgets()
        yield from self._of_ledger()

    def _of_routes(self) -> Iterable[Metric]:
        from prometheus_client.core import CounterMetricFamily as Counter
        from prometheus_client.core import GaugeMetricFamily as Gauge

        found = self._steerings.snapshot()
        for model in [model for model in found if self._routes.served(model) is None]:
            self._steerings.forget(model)
            del found[model]
        rows = [(model, name or model, counts) for model, routes in found.items() for name, counts in routes.items()]
        for key, name, text in _ROUTE_COUNTS:
            counter = Counter(f"pressroom_route_{name}", text, labels=["model", "route"])
            for model, route, counts in rows:
                counter.add_metric([model, route], counts[key])
            yield counter
        breaker = Gauge(
            "pressroom_route_breaker",
            "Whether a route is passed over: 0 no, 1 it is tried, 2 yes.",
            labels=["model", "route"],
        )
        for model, route, counts in rows:
            breaker.add_metric([model, route], _STATES[counts["breaker"]])
        yield breaker

    def _of_cache(self) -> Iterable[Metric]:
        from prometheus_client.core import CounterMetricFamily as Counter
        from prometheus_client.core import GaugeMetricFamily as Gauge

        found = self._cache.snapshot()
        lookups = Counter(
            "pressroom_cache_lookups", "Requests that the cache was asked for.", labels=["model", "kind", "result"]
        )
        evictions = Counter("pressroom_cache_evictions", "Answers forgotten for want of room.", labels=["model"])
        stores = Counter("pressroom_cache_stores", "Answers that were kept.", labels=["model"])
        refused = Counter("pressroom_cache_not_kept", "Answers that were cut, too large or not read.", labels=["model"])
        entries = Gauge("pressroom_cache_entries", "Answers that are kept now.", labels=["model"])
        size = Gauge("pressroom_cache_bytes", "Memory that kept answers take.", labels=["model"])
        for model, figures in found.items():
            for name, kind, result in _CACHE_COUNTS:
                lookups.add_metric([model, kind, result], getattr(figures, name))
            evictions.add_metric([model], figures.evictions)
            size.add_metric([model], figures.bytes)
            stores.add_metric([model], figures.stores)
            refused.add_metric([model], figures.refused)
            entries.add_metric([model], figures.entries)
        yield from (lookups, evictions, stores, refused, entries, size)

    def _of_budgets(self) -> Iterable[Metric]:
        from prometheus_client.core import CounterMetricFamily as Counter
        from prometheus_client.core import GaugeMetricFamily as Gauge

        from pressroom.gateway.money import Accounts

        treasury = self._books.treasury
        if not isinstance(treasury, Accounts):
            return
        labels = ["scope", "name", "unit", "period"]
        amount = Gauge("pressroom_budget", "What a budget allows in its period; money in US dollars.", labels=labels)
        left = Gauge("pressroom_budget_left", "What is neither spent nor set aside of it.", labels=labels)
        held = Gauge("pressroom_budget_held", "What running requests have set aside of it.", labels=labels)
        for pot in treasury.pots():
            budget, share = pot.budget, 1e-9 if pot.usd else 1.0
            values = [budget.scope.value, budget.name, budget.unit.value, budget.period.value]
            amount.add_metric(values, budget.amount * share)
            left.add_metric(values, (pot.left - pot.held) * share)
            held.add_metric(values, pot.held * share)
        yield from (amount, left, held)
        overruns = "Requests that came to more than was set aside for them."
        yield Counter("pressroom_budget_overruns", overruns, value=treasury.overruns)
        yield Counter("pressroom_budget_holds_expired", "Holds that nobody settled in time.", value=treasury.expired)

    def _of_ledger(self) -> Iterable[Metric]:
        from prometheus_client.core import CounterMetricFamily as Counter
        from prometheus_client.core import GaugeMetricFamily as Gauge

        from pressroom.gateway.ledger import JournalLedger

        ledger = self._books.ledger
        if not isinstance(ledger, JournalLedger):
            return
        yield Counter("pressroom_ledger_rows", "Rows written down.", value=ledger.rows)
        yield Counter("pressroom_ledger_rows_lost", "Rows given up because the disk was full.", value=ledger.lost_rows)
        yield Counter("pressroom_ledger_damaged", "Stretches of the journal that cannot be read.", value=ledger.damaged)
        yield Counter("pressroom_ledger_failures", "Times that the database did not take rows.", value=ledger.failures)
        hurried, left_out = ledger.hurried, ledger.left_out
        yield Counter("pressroom_ledger_languages_spared", "Languages not looked for, to spare time.", value=hurried)
        yield Counter("pressroom_ledger_texts_left_out", "Texts not held, because too many waited.", value=left_out)
        yield Gauge("pressroom_ledger_unfolded", "Rows that are not in the database yet.", value=ledger.unfolded)
        yield Gauge("pressroom_ledger_full", "Whether the disk has no room for rows.", value=int(ledger.full))
