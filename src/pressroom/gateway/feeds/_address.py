"""Addresses of feeds. One that holds a secret is refused, and not repeated in the refusal."""

from __future__ import annotations

import re

from pressroom.gateway.feeds.base import Address, FeedAddressError

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,31})://")
_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")
_NAME_LIMIT = 255


def parse_address(text: str) -> Address:
    """`scheme://host[:port][,host[:port]…]/name` as an Address.

    Raises:
        FeedAddressError: it is not one, or it holds a user or a password.
    """
    scheme = _SCHEME.match(text)
    if "@" in text:  # anywhere: a slash in a password moves the rest of it behind the host
        raise FeedAddressError(
            "an address of a feed must not hold a user or a password: the process list and the shell's history show it",
            hint="Leave them out of the address and set them in the environment; docs/feeds.md names the variables.",
        )
    if scheme is None:
        raise _malformed(text, "it does not begin with a scheme")
    hosts, slash, name = text[scheme.end() :].partition("/")
    if not slash or not name:
        raise _malformed(text, "it names no subject or topic")
    if "?" in name or "#" in name:
        raise _malformed(text, "there is no query and no fragment in one")
    if len(name) > _NAME_LIMIT or not name.isprintable() or any(sign.isspace() for sign in name):
        raise _malformed(text, f"a name is at most {_NAME_LIMIT} characters, without blanks")
    places = tuple(hosts.split(","))
    for place in places:
        host = _HOST.fullmatch(place)
        if host is None or (host[1] is not None and not 0 < int(host[1]) < 65536):
            raise _malformed(text, f"{place[:80]!r} is not host:port")
    return Address(scheme=scheme[1], hosts=places, name=name)


def _malformed(text: str, why: str) -> FeedAddressError:
    return FeedAddressError(
        f"{text[:200]!r} is not an address of a feed: {why}",
        hint="Write it as nats://host:4222/SUBJECT or kafka://host:9092/TOPIC.",
    )
