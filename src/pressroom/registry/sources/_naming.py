"""What a stranger wrote, as it may be shown: names without what a terminal obeys, addresses without passwords."""

from __future__ import annotations

import re

_MOST = 255
_CREDENTIALS = re.compile(r"(?i)([a-z][a-z0-9+.-]*://|https?:/*)[^\s/?#]*@")


def shown(name: str) -> str:
    """The name with everything escaped that does not print, cut after 255 characters."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name[: _MOST + 1])
    return plain if len(name) <= _MOST else plain[: _MOST - 1] + "…"


def without_credentials(text: str) -> str:
    """The text without user and password of the addresses in it."""
    return _CREDENTIALS.sub(r"\1", text)
