"""Ref: the one noun that travels between the parts, `name[:version][@sha256-…]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pressroom.kernel.errors import RefError

# One optional namespace, as model hubs have it (`org/name`). A name starts with a letter or a digit, so that it is
# safe as a file name, an URL segment and a command-line argument.
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_NAME = re.compile(rf"{_PART}(?:/{_PART})?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"sha256-[0-9a-f]{4,64}")


@dataclass(frozen=True, slots=True)
class Ref:
    """A model by name, and where wanted by version (a number or an alias) and by digest.

    `smollm2` is the newest version, `smollm2:3` the third, `smollm2:production` whatever that alias points to, and
    `smollm2@sha256-1f0c…` the version with that digest (a prefix of at least 4 hex digits will do).
    """

    name: str
    version: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Ref:
        """Read a reference.

        Raises:
            RefError: the text is not of the form `name[:version][@sha256-…]`.
        """
        rest, at, digest = text.partition("@")
        name, colon, version = rest.partition(":")
        if (
            not _NAME.fullmatch(name)
            or (colon and not _VERSION.fullmatch(version))
            or (at and not _DIGEST.fullmatch(digest))
        ):
            raise RefError(
                f"{text!r} is not a reference",
                hint="A reference is name[:version][@sha256-…], for example smollm2, smollm2:1 or org/name:2. "
                "Names use letters, digits, '.', '_' and '-', and start with a letter or a digit.",
                asked=text,
            )
        return cls(name, version or None, digest or None)

    @property
    def number(self) -> int | None:
        """The version as a number, or None where it is an alias or not given."""
        return int(self.version) if self.version is not None and self.version.isdecimal() else None

    def __str__(self) -> str:
        version = f":{self.version}" if self.version else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{version}{digest}"


def is_name(text: str) -> bool:
    """Whether the text can name a model or a deployment."""
    return _NAME.fullmatch(text) is not None
