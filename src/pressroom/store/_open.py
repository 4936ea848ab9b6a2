"""The store that the settings name."""

from __future__ import annotations

from pressroom.kernel import MissingDependencyError, PluginError, SettingsError, Workspace, plugins
from pressroom.store.base import Store

_PACKAGE = "pressroom.store.backends"
_GROUP = "pressroom.store"


def open_store(workspace: Workspace) -> Store:
    """Open the store of the `store` setting; the scheme of the URL names the backend.

    Raises:
        SettingsError: the setting is not a URL, no backend has that scheme, or the backend cannot use the URL.
        MissingDependencyError: the backend's library is not installed.
        StoreError: the place is there but cannot be used.
    """
    url = workspace.settings.store
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
    store = backend(url, root=workspace.root, storage=workspace.settings.storage)
    assert isinstance(store, Store)
    return store
