"""`PROTOCOL:MODEL[@URL]`: a model that a vendor runs, registered as a small file that says where it answers.

Nothing is fetched and nobody is asked, so that it works without a network; whether the vendor knows the model shows
when it is deployed and asked. No key is part of it: a deployment names the variable or the file that has one.
"""

from __future__ import annotations

import errno
import json
import re
from typing import ClassVar
from urllib.parse import urlsplit, urlunsplit

from pressroom.kernel import SourceError, StoreFullError
from pressroom.registry.sources._naming import shown
from pressroom.registry.sources.base import Fetched, Found, Order, Source

# A model's name may hold '@' itself (claude-3@20240620), an address never begins otherwise.
_SPEC = re.compile(r"(?P<model>(?!@)[\x21-\x7e]{1,200}?)(?:@(?P<url>[hH][tT][tT][pP][sS]?:.*))?", re.DOTALL)
_FILE = "endpoint.json"


class RemoteSource(Source):
    """A vendor's protocol: subclasses say which, and where it answers unless somebody says otherwise."""

    protocol: ClassVar[str]
    url: ClassVar[str]

    def base(self, path: str) -> str:
        """The path below which the endpoints are, from the one that was given."""
        return path.rstrip("/") or "/v1"

    def exact(self, spec: str, member: str | None) -> str | None:
        model, url = self._parsed(spec, member)
        return self._origin(model, url)

    def fetch(self, order: Order) -> Fetched:
        model, url = self._parsed(order.spec, order.member)
        description = {"protocol": self.protocol, "url": url, "model": model}
        path = order.workdir / _FILE
        try:
            path.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFullError(
                    f"no room to write {path}", hint="Make room, and run the same command again."
                ) from error
            raise SourceError(
                f"{path} cannot be written: {error.strerror}", hint="Check the permissions of the workspace."
            ) from error
        return Fetched(name=model, origin=self._origin(model, url), files=(Found(path=_FILE, local=path),))

    def _origin(self, model: str, url: str) -> str:
        return f"{self.protocol}:{model}" + ("" if url == self.url else f"@{url}")

    def _parsed(self, spec: str, member: str | None) -> tuple[str, str]:
        """The vendor's name of the model, and the address below which the endpoints are."""
        found = _SPEC.fullmatch(spec)
        # Without what follows '//': what stands in a wrong address may be a password.
        said = f"{self.protocol}:{shown(re.sub('//.*', '//…', spec, flags=re.DOTALL))}"
        if found is None or "//" in found["model"]:
            raise SourceError(
                f"{said!r} does not name a model of a vendor",
                hint=f"Write {self.form}, with the name that the vendor has for it.",
                asked=said,
            )
        if member is not None:
            raise SourceError(
                f"{said!r} is a model of a vendor: there are no files to choose one of",
                hint="Leave '#' and what follows out.",
                asked=said,
            )
        return found["model"], self.url if found["url"] is None else self._address(found["url"], said)

    def _address(self, text: str, said: str) -> str:
        try:
            parts = urlsplit(text)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise SourceError(f"{said!r} does not hold an address", hint="Write https://HOST/v1.", asked=said) from None
        if "@" in text:
            raise SourceError(
                f"{said!r} is refused: its address has a user or a password in it",
                hint="Leave it out; `press deploy` takes the key from a variable or a file (key_env, key_file).",
                asked=said,
            )
        if "?" in text:
            raise SourceError(
                f"{said!r} is refused: its address has a query, which may be a key",
                hint="Leave out '?' and what follows.",
                asked=said,
            )
        if not re.fullmatch(r"[A-Za-z0-9._:-]+", host) or not re.fullmatch(r"[\x21-\x7e]{1,2000}", text):
            raise SourceError(f"{said!r} does not hold an address", hint="Write https://HOST/v1.", asked=said)
        place = (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
        return urlunsplit((parts.scheme.lower(), place, self.base(parts.path), "", ""))
