"""What somebody asks for, as text: a scheme, what is behind it, and the one file wanted of it."""

from __future__ import annotations

import re
from pathlib import Path

from pressroom.kernel import SourceError, plugins
from pressroom.registry.sources._naming import without_credentials
from pressroom.registry.sources.base import Source

_PACKAGE = "pressroom.registry.sources"
_GROUP = "pressroom.sources"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(.*)", re.DOTALL)


def source_names() -> list[str]:
    """The schemes that `pull` understands."""
    return plugins.names(_PACKAGE, _GROUP)


def source_called(scheme: str) -> Source:
    """The backend of a scheme."""
    backend: Source = plugins.load(_PACKAGE, _GROUP, scheme)()
    return backend


def split(source: str) -> tuple[str, str, str | None]:
    """Scheme, the rest, and the member behind '#'. A path comes back absolute."""
    body, hash_mark, member = source.partition("#")
    found = _SCHEME.fullmatch(body)
    scheme = found[1].lower() if found else ""
    if scheme == "http":  # the source says itself where it may be used
        scheme = "https"
    named = found is not None and scheme != "path" and scheme in source_names()
    if not named and (whole := _path(source)) is not None:  # a '#' in a file's own name
        return "path", str(whole), None
    if hash_mark and not member:
        raise SourceError(
            f"{shown(source)!r} ends with '#'", hint="Name the file behind it, or leave it out.", asked=shown(source)
        )
    if found is not None and named:
        return scheme, body if scheme == "https" else found[2], member or None
    if not body.strip():
        raise SourceError("the source is empty", hint=_forms(), asked=source)
    path = _path(body)
    if path is None and found is not None:
        raise SourceError(
            f"{shown(source)!r} is not a source: there is no scheme {found[1]!r}", hint=_forms(), asked=shown(source)
        )
    return "path", str(path or Path(body).absolute()), member or None


def _path(text: str) -> Path | None:
    """The absolute path of something that is there; None where nothing is."""
    try:
        path = Path(text).expanduser().absolute()
        return path if text.strip() and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long; a zero byte; '~' of somebody unknown
        return None


def _forms() -> str:
    return "Sources: " + ", ".join(plugins.load(_PACKAGE, _GROUP, name).form for name in source_names()) + "."


def shown(source: str) -> str:
    """A source as it may be said and kept."""
    found = re.match(r"https?:", source, re.IGNORECASE)
    return without_credentials(source).partition("?")[0] if found else without_credentials(source)
