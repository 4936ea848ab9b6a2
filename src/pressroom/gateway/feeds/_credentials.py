"""Secrets of brokers: from a variable, or from the file that a variable names. Never from an address."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pressroom.gateway.feeds.base import FeedError

_LIMIT = 65_536


def secret(environ: Mapping[str, str], variable: str) -> str | None:
    """What `VARIABLE` holds, or the first line of the file `VARIABLE_FILE` names; None where neither is set.

    Raises:
        FeedError: the file cannot be read, or is no text. The message names the variable, not the secret.
    """
    if variable in environ:
        return environ[variable]
    place = existing_file(environ, f"{variable}_FILE")
    if place is None:
        return None
    try:
        with place.open(encoding="utf-8") as file:
            return file.readline(_LIMIT).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FeedError(f"{variable}_FILE names a file that cannot be read", hint=type(error).__name__) from None


def existing_file(environ: Mapping[str, str], variable: str) -> Path | None:
    """The file that a variable names, None where it is not set.

    Raises:
        FeedError: there is no such file.
    """
    named = environ.get(variable)
    if not named:
        return None
    place = Path(named).expanduser()
    if not place.is_file():
        raise FeedError(f"{variable} names a file that does not exist", hint=f"Set {variable} to the path of a file.")
    return place
