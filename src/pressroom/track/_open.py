"""The tracker that the settings name."""

from __future__ import annotations

from urllib.parse import urlsplit

from pressroom.kernel import MissingDependencyError, SettingsError, Workspace, plugins
from pressroom.track.base import Tracker

_PACKAGE = "pressroom.track.backends"
_GROUP = "pressroom.track"
# What MLflow opens itself: databases, and its own server.
_DEFAULT = "mlflow"


def open_tracker(workspace: Workspace) -> Tracker:
    """Open the place of the `tracking` setting. A backend of another distribution is found by the URL's scheme; all
    else is MLflow's.

    Raises:
        SettingsError: the setting is not a URL, or no backend can use it.
        MissingDependencyError: the backend's library is not installed.
    """
    url = workspace.settings.tracking
    scheme, separator, _ = url.partition("://")
    if not separator or not scheme:
        raise SettingsError(
            f"tracking = {_shown(url)!r} is not a URL",
            hint="Write sqlite:///path/to/mlflow.db, postgresql://user@host/name, or the address of an MLflow server.",
        )
    known = plugins.names(_PACKAGE, _GROUP)
    name = scheme if scheme in known else _DEFAULT
    try:
        backend = plugins.load(_PACKAGE, _GROUP, name)
    except MissingDependencyError as error:
        raise MissingDependencyError(
            error.message, hint="Install it with: pip install 'pressroom[track]'", **error.facts
        ) from error
    tracker = backend(url, root=workspace.root, offline=workspace.settings.offline)
    assert isinstance(tracker, Tracker)
    return tracker


def _shown(url: str) -> str:
    """The URL without what may be a password."""
    return url if "@" not in url else urlsplit(url)._replace(netloc="…").geturl()
