"""Backends by name: one file each, imported when asked for, found without a central list.

A part keeps its backends as modules of one package (`pressroom.engines.backends`); other distributions join through the
entry point group of the part (`pressroom.engines`). Listing imports nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from pressroom.kernel.errors import MissingDependencyError, PluginError, did_you_mean


def _own(package: str) -> dict[str, str]:
    module = importlib.import_module(package)
    return {
        info.name: f"{package}.{info.name}"
        for info in pkgutil.iter_modules(module.__path__)
        if not info.name.startswith("_") and info.name != "base"
    }


def _foreign(group: str) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=group)}


def names(package: str, group: str) -> list[str]:
    """The names of every backend of a part, sorted. Imports none of them."""
    return sorted({*_own(package), *_foreign(group)})


def load(package: str, group: str, name: str, *, attribute: str = "Backend") -> Any:
    """The class `attribute` of the backend called `name`; the part's own backends come before foreign ones.

    Raises:
        PluginError: there is no such backend, or it does not define what the part expects.
        MissingDependencyError: a library it needs is not installed.
    """
    own = _own(package)
    # To look for others' takes as long as the distributions that are installed are many.
    foreign = {} if name in own else _foreign(group)
    if name not in own and name not in foreign:
        known = sorted({*own, *foreign})
        raise PluginError(
            f"there is no {group} backend called {name!r}",
            hint=did_you_mean(name, known, otherwise=f"Known: {', '.join(known)}."),
            asked=name,
            known=known,
        )
    try:
        module: ModuleType | Any = importlib.import_module(own[name]) if name in own else foreign[name].load()
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the {group} backend {name!r} needs the library {error.name!r}, which is not installed",
            hint=f"Install it with: pip install 'pressroom[{name}]'",
            backend=name,
            library=error.name,
        ) from error
    except AttributeError as error:
        if name in own or not isinstance(error.obj, ModuleType):
            raise  # a fault in the backend's own code
        module = None  # its entry point names something its module does not have
    found = getattr(module, attribute, None) if isinstance(module, ModuleType) else module
    if found is None:
        raise PluginError(
            f"the {group} backend {name!r} does not define {attribute}",
            hint=f"A backend is one file with a class called {attribute}; see docs/architecture.md.",
            backend=name,
        )
    return found
