"""Brokers by the scheme of their addresses."""

from __future__ import annotations

from collections.abc import Mapping

from pressroom.gateway.feeds.base import Broker, FeedAddressError
from pressroom.kernel import plugins

_PACKAGE = "pressroom.gateway.feeds.backends"
_GROUP = "pressroom.feeds"


def broker_names() -> list[str]:
    """The schemes of every broker, the project's own and those of other distributions. Imports none of them."""
    return plugins.names(_PACKAGE, _GROUP)


def broker_for(scheme: str, environ: Mapping[str, str]) -> Broker:
    """The broker that addresses of this scheme belong to; connects to nothing.

    Raises:
        FeedAddressError: there is none.
        MissingDependencyError, PluginError: it does not load.
    """
    known = broker_names()
    if scheme not in known:
        raise FeedAddressError(
            f"{scheme[:40]!r} is not a message broker that feeds know",
            hint=f"Addresses look like {known[-1]}://host:port/NAME. Known: {', '.join(known)}.",
            known=known,
        )
    kind: type[Broker] = plugins.load(_PACKAGE, _GROUP, scheme)
    return kind(environ)
