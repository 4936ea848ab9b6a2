"""`https://…`: one file, or an archive, from a web server; resumed after a cut."""

from __future__ import annotations

import re
from dataclasses import replace

from pressroom.kernel import OfflineError, SourceError
from pressroom.registry.sources._address import Address
from pressroom.registry.sources._checks import Declared, is_page
from pressroom.registry.sources._downloads import Downloads
from pressroom.registry.sources._seen import seen_before, text_of
from pressroom.registry.sources._sharded import INDEX, fetch_sharded
from pressroom.registry.sources._wanted import Wanted
from pressroom.registry.sources.base import Fetched, Found, Order, Source, with_member
from pressroom.registry.sources.path import local_file, stem

_SHA256 = re.compile(r"sha256=([0-9a-fA-F]{64})")


class Backend(Source):
    """A web server; `#sha256=HEX` behind the address says what the file must be."""

    form = "https://HOST/PATH[#sha256=HEX]"

    def exact(self, spec: str, member: str | None) -> str | None:
        address = Address.parse(spec)
        digest = _declared(member)
        return with_member(address.shown, f"sha256={digest}") if digest else None

    def fetch(self, order: Order) -> Fetched:
        address = Address.parse(order.spec)
        digest = _declared(order.member)
        origin = with_member(address.shown, f"sha256={digest}") if digest else address.shown
        held = order.held(Declared(sha256=digest), address.name) if digest else None
        if held is not None:
            return Fetched(name=stem(address.name), origin=origin, files=(Found(path=address.name, blob=held),))
        if order.offline:
            raise OfflineError(
                f"{address.shown} is not in this workspace, and `offline` is on",
                hint="Pull it once with offline = false, or give the path of the file.",
            )
        if address.name.endswith(INDEX):
            return fetch_sharded(address, order)
        wanted = Wanted(address=address, local=order.workdir / "body", declared=Declared(sha256=digest))
        if digest is not None or order.member is None:  # else it is an archive: that is not kept
            wanted = replace(wanted, seen=seen_before(address, order, sha256=digest), likely=order.again)
        downloads = Downloads([wanted], task=address.name, events=order.events, connections=order.connections)
        (brought,) = downloads.run()
        if brought.blob is None and is_page(wanted.local):
            raise SourceError(
                f"{address.shown} is a web page, not a file of weights",
                hint="Use the address of the file itself; for a model of the hub write hf:ORG/NAME.",
            )
        known = Found(
            path=address.name, local=wanted.local, blob=brought.blob, sha256=digest, checked=True, text=text_of(brought)
        )
        if brought.blob is not None:
            files: tuple[Found, ...] = (replace(known, local=None),)
            return Fetched(name=stem(address.name), origin=origin, files=files, fetched=downloads.fetched)
        order = replace(order, member=None) if digest else order
        fetched = local_file(wanted.local, order, origin=origin, name=address.name)
        # What is said of an archive is not said of the files in it.
        files = tuple(known if found.local == wanted.local else found for found in fetched.files)
        return replace(fetched, files=files, fetched=downloads.fetched)


def _declared(member: str | None) -> str | None:
    """The digest that a fragment declares, where it is one."""
    found = _SHA256.fullmatch(member or "")
    if found is None and (member or "").startswith("sha256="):
        raise SourceError(f"{member!r} is not a SHA-256 digest", hint="Write #sha256= and 64 hexadecimal digits.")
    return found[1].lower() if found else None
