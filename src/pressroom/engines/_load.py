"""Engines by name."""

from __future__ import annotations

import logging

from pressroom.engines.base import Engine, EngineSpec
from pressroom.kernel import PluginError, Workspace, plugins

_log = logging.getLogger(__name__)

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


def engines_for(workspace: Workspace, form: str) -> list[str]:
    """The engines that load weights of this format and can run here, the preferred first."""
    found = []
    for name in engine_names():
        try:
            kind = engine_class(name)
        except PluginError as error:
            _log.warning("the engine %s is left out: %s", name, error.message)
            continue
        if form in kind.formats and not kind.unusable(workspace):
            found.append((kind.rank, name))
    return [name for _, name in sorted(found)]
