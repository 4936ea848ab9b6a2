"""The place that a URL names."""

from __future__ import annotations

from pathlib import Path

from pressroom.kernel import MissingDependencyError, PluginError, SettingsError, plugins
from pressroom.store.places.base import Place

_PACKAGE = "pressroom.store.places"
_GROUP = "pressroom.places"


def open_place(url: str, root: Path) -> Place:
    """Open the place of a `store` setting; the scheme of the URL names it, relative paths start at `root`.

    Raises:
        SettingsError: it is not a URL, nothing has that scheme, or the place cannot use it.
        MissingDependencyError: the place's library is not installed.
        StoreError: the place is there but cannot be used.
    """
    scheme, separator, rest = url.partition("://")
    shown = "…" if "@" in url else url  # what stands before an @ may be a password
    if not separator or not rest:
        known = ", ".join(f"{name}://…" for name in plugins.names(_PACKAGE, _GROUP))
        raise SettingsError(f"store = {shown!r} is not a URL", hint=f"Known: {known}.", asked=shown)
    try:
        backend = plugins.load(_PACKAGE, _GROUP, scheme)
    except MissingDependencyError:
        raise
    except PluginError as error:
        raise SettingsError(f"store = {shown!r}: {error.message}", hint=error.hint, **error.facts) from error
    place = backend(url, root=root)
    assert isinstance(place, Place)
    return place
