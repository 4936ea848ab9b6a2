"""Header lines that say who answered."""

from __future__ import annotations

import re

_SAFE = re.compile(r"[\x21-\x7e]{1,128}")


def said(digest: str, branch: str = "", cache: str = "") -> bytes:
    """The version with this digest, which of several routes, and whether the answer was kept from before."""
    named = ((b"version", digest), (b"route", branch), (b"cache", cache))
    return b"".join(b"pressroom-%b: %b\r\n" % (name, text.encode()) for name, text in named if _SAFE.fullmatch(text))
