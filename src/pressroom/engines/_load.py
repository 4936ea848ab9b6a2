"""Engines by name."""

from __future__ import annotations

from pressroom.engines.base import Engine, EngineSpec
from pressroom.kernel import plugins

_PACKAGE = "pressroom.engines.backends"
_GROUP = "pressroom.engines"


def engine_names() -> list[str]:
    """The names of every engine, the project's own and those of other distributions. Imports none of them."""
    return plugins.names(_PACKAGE, _GROUP)


def engine_class(name: str) -> type[Engine]:
    """The class of the engine called `name`, to ask for its capabilities and formats.

    Raises:
        PluginError: there is no such engine, or it does not load.
    """
    found: type[Engine] = plugins.load(_PACKAGE, _GROUP, name)
    return found


def create(name: str, spec: EngineSpec) -> Engine:
    """The engine called `name`, not started yet. Raises PluginError as `engine_class` does."""
    return engine_class(name)(spec)
