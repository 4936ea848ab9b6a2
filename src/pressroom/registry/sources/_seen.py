"""What an address brought before: an address, the mark of its server and a size always mean the same bytes."""

from __future__ import annotations

import re
from collections.abc import Callable

from pressroom.registry.sources._address import Address
from pressroom.registry.sources._checks import Declared
from pressroom.registry.sources._wanted import Brought
from pressroom.registry.sources.base import Order


def seen_before(address: Address, order: Order, *, sha256: str | None = None) -> Callable[[str, int], str | None]:
    """What to ask with the mark and the size that a server gives; `sha256` is the digest that somebody declared.

    Hubs mark a large file by its SHA-256. Whatever another server means by a mark that looks so: where a file of that
    digest and that length is here, it is the one.
    """

    def seen(mark: str, size: int) -> str | None:
        digest = mark.strip('"') if sha256 is None else sha256
        if sha256 is not None or re.fullmatch(r"[0-9a-f]{64}", digest):
            found = order.held(Declared(size=size, sha256=digest), address.name)
            if found is not None or sha256 is not None:
                return found
        return order.held(Declared(size=size, text=_text(address, mark, size)), address.name) if mark else None

    return seen


def text_of(brought: Brought) -> str:
    """The text that means what was brought; "" where the server gives no mark."""
    return _text(brought.wanted.address, brought.mark, brought.size) if brought.mark else ""


def _text(address: Address, mark: str, size: int) -> str:
    return f"{address.url} {mark} {size}"
