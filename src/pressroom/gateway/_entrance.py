"""Who sends a request, from its headers: found once for each kind of head, and looked up again when keys change."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from pressroom.gateway.admission import ANONYMOUS, Client
from pressroom.gateway.cache.base import directives
from pressroom.gateway.problems import Problem

if TYPE_CHECKING:
    from pressroom.gateway.access import Access

_LONGEST_TAG = 64
_ID_AT = len(b"x-request-id: ")


class Said(NamedTuple):
    """The headers that matter here, as they came."""

    authorization: bytes | None = None
    api_key: bytes | None = None
    on_behalf: bytes | None = None
    tag: bytes = b""
    cache_control: bytes = b""


NOTHING = Said()
_NAMES = frozenset((b"authorization", b"x-api-key", b"pressroom-on-behalf", b"pressroom-tag", b"cache-control"))


def said_in(headers: Mapping[bytes, bytes]) -> Said:
    """What the headers of a request, or the metadata of a call, say."""
    if _NAMES.isdisjoint(headers):
        return NOTHING
    get = headers.get
    return Said(
        get(b"authorization"),
        get(b"x-api-key"),
        get(b"pressroom-on-behalf"),
        get(b"pressroom-tag", b""),
        get(b"cache-control", b""),
    )


class Memo:
    """What was found for one head; shared by all requests that have it."""

    __slots__ = ("client", "generation")

    def __init__(self) -> None:
        self.client: Client | None = None
        self.generation = -1


class Entrance:
    """Finds who asks. Without `access` everybody is nobody, and may ask."""

    def __init__(self, access: Access | None) -> None:
        self.access = access

    def client(self, headers: Mapping[bytes, bytes], memo: Memo) -> Client | Problem:
        """Who sends a request with these headers; remembered in `memo` until keys change."""
        access = self.access
        generation = access.generation if access is not None else 0
        if memo.generation == generation and memo.client is not None:
            return memo.client
        found = self.of(said_in(headers))
        if isinstance(found, Client):
            memo.client, memo.generation = found, generation
        return found

    def of(self, said: Said) -> Client | Problem:
        """Who says this."""
        access = self.access
        if access is None:
            if said is NOTHING:
                return ANONYMOUS
            caller = ANONYMOUS.caller
        else:
            found = access.caller(said.authorization, said.api_key, said.on_behalf)
            if isinstance(found, Problem):
                return found
            caller = found
        tag = said.tag.decode("latin-1").strip()
        if len(tag) > _LONGEST_TAG or not tag.isprintable():
            return Problem(
                400,
                f"The header 'pressroom-tag' is over {_LONGEST_TAG} characters, or not text.",
                code="invalid_header",
            )
        fresh, apart = directives(said.cache_control) if said.cache_control else (False, False)
        return Client(caller, tag, fresh=fresh, store=not apart)


class Ids:
    """Names of requests: unique over restarts without asking the system for randomness on each."""

    def __init__(self) -> None:
        #: What all of them begin with.
        self.prefix = f"req_{secrets.token_hex(6)}"
        self._line = f"x-request-id: {self.prefix}".encode()
        self._numbers = itertools.count(1)

    def header(self) -> bytes:
        """The line of headers with the next one; `id_of` gives the name in it."""
        return b"%b%08x\r\n" % (self._line, next(self._numbers))


def id_of(header: bytes) -> str:
    """The name of a request, from the line of headers it is answered with."""
    return header[_ID_AT:-2].decode("latin-1")
