"""What a key may do. A right is a word, and behind ':' a pattern of names ('*' stands for any letters, '/' too, '?' for
one):

    ask                  use every deployment through the gateway; nothing of the hub
    ask:chat*            use those deployments whose names begin so
    read                 the hub answers
    write:smollm2*       push, tag and describe models whose names begin so; reading them comes with it
    promote:smollm2      move its aliases and change their floors; reading comes with it
    admin                all of these
"""

from __future__ import annotations

import fnmatch
import re

from pressroom.kernel.errors import PressroomError
from pressroom.kernel.settings import KEY_VARIABLE

RIGHTS = ("ask", "read", "write", "promote", "admin")
#: What to do where a gateway does not let a client in.
NEEDS_KEY = f"Make a key with `press keys create NAME --right ask`, and set {KEY_VARIABLE} to it."

_PATTERN = re.compile(r"[A-Za-z0-9._/*?-]{1,200}")


class AccessError(PressroomError):
    """A key that is not known, was revoked, has expired or does not have the right; or something that no key can be."""

    code = "access"


def checked_right(right: str) -> str:
    """The right, where there is one called so. Raises AccessError."""
    if right not in RIGHTS:
        raise AccessError(
            f"there is no right {right!r}",
            hint=f"There are {', '.join(RIGHTS)}, and behind ':' the names one is for: write:smollm2*.",
            asked=right,
            known=list(RIGHTS),
        )
    return right


def checked_grant(text: str) -> str:
    """A right as it is granted, `RIGHT` or `RIGHT:PATTERN`, where it is well written. Raises AccessError."""
    word, colon, pattern = text.partition(":")
    checked_right(word)
    if colon and not _PATTERN.fullmatch(pattern):
        raise AccessError(
            f"{pattern!r} in the right {text!r} is not a pattern of names",
            hint="Letters, digits, '.', '_', '-' and '/', with '*' for any letters and '?' for one: write:smollm2*.",
            asked=text,
        )
    return text


def gives(grant: str, right: str) -> bool:
    """Whether what was granted brings a right, for whatever name: `admin` all, and what changes models reading."""
    word = grant.partition(":")[0]
    return word in (right, "admin") or (right == "read" and word != "ask")


def covers(grant: str, right: str, name: str) -> bool:
    """Whether what was granted brings a right for the model, or the deployment, of that name."""
    pattern = grant.partition(":")[2]
    return gives(grant, right) and (not pattern or fnmatch.fnmatchcase(name, pattern))
