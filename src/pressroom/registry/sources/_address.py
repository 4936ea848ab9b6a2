"""Where a file is on the web: checked before it is asked for, and shown without what is secret in it."""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pressroom.kernel import SourceError
from pressroom.registry.base import is_file_path
from pressroom.registry.sources._naming import without_credentials

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
# What an address may hold as it is; everything else is percent-encoded.
_PLAIN = "/%:@!$&'()*+,;=~-._?"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a file is. `url` is without user and password, which `authorization` has; `shown` may be said and kept: it
    is also without the query, which may hold a signature. `name` is what the file is called there."""

    url: str
    authorization: str | None
    shown: str
    name: str

    @classmethod
    def parse(cls, text: str, *, plain: str = "") -> Address:
        """Read an address. http is for this machine, and for the origin of the address `plain`, which somebody chose.

        Raises:
            SourceError: it is none, or not a safe one.
        """
        try:
            parts = urlsplit(text)
            host, port = parts.hostname or "", parts.port
            host = host.encode("idna").decode("ascii") if not host.isascii() else host
        except ValueError as error:  # UnicodeError among them
            # Whatever stands before an '@' may be the password that made it none.
            said = re.sub(r"//.*@", "//", without_query(text), flags=re.DOTALL)
            raise SourceError(f"{said!r} is not an address", hint="Write https://HOST/PATH.") from error
        secure = parts.scheme == "https" or (parts.scheme == "http" and (host in _LOOPBACK or same_origin(text, plain)))
        if not re.fullmatch(r"[A-Za-z0-9._:-]+", host) or not secure or re.search(r"[\s\x00-\x1f\x7f]", text):
            raise SourceError(
                f"{without_query(text)!r} is refused: weights come over https, or http from this machine",
                hint="Write https://HOST/PATH.",
            )
        place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
        path = quote(parts.path, safe=_PLAIN)
        authorization = None
        if parts.username is not None:
            secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + b64encode(secret.encode()).decode()
        name = PurePosixPath(unquote(parts.path)).name
        return cls(
            url=urlunsplit((parts.scheme, place, path, quote(parts.query, safe=_PLAIN), "")),
            authorization=authorization,
            shown=urlunsplit((parts.scheme, place, path, "", "")),
            name=name if is_file_path(name) else host,
        )

    def beside(self, name: str) -> Address:
        """The address of the file called `name` in the same folder, with the same rights."""
        parts = urlsplit(self.url)
        path = parts.path.rpartition("/")[0] + "/" + quote(name, safe="")
        return Address(
            url=urlunsplit((parts.scheme, parts.netloc, path, parts.query, "")),
            authorization=self.authorization,
            shown=urlunsplit((parts.scheme, parts.netloc, path, "", "")),
            name=name,
        )


def without_query(url: str) -> str:
    """An address as it may be said: a query may hold a signature."""
    return without_credentials(url).partition("?")[0]


def same_origin(one: str, other: str) -> bool:
    """Whether two addresses are of one server: scheme, host and port."""
    try:
        first, second = (urlsplit(url) for url in (one, other))
        return bool(first.hostname) and (first.scheme, first.hostname, first.port) == (
            second.scheme,
            second.hostname,
            second.port,
        )
    except ValueError:
        return False


def is_this_machine(url: str) -> bool:
    return urlsplit(url).hostname in _LOOPBACK
