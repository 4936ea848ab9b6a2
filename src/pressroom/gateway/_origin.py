"""Keeps web pages away from a gateway that listens on loopback.

A browser on this machine reaches 127.0.0.1 for any page. Two doors are closed: a page whose own name was pointed at
127.0.0.1 (DNS rebinding) is known by its Host header, and a page that posts across sites by its Origin. No answer
carries CORS headers, so no page reads one it could still provoke.
"""

from __future__ import annotations

import ipaddress

from pressroom.gateway.problems import Problem

_REMEMBERED = 1_024
_REMEMBERED_LENGTH = 256


def is_loopback(host: str) -> bool:
    """Whether the host, a name or an address, is this machine for itself only."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(authority: bytes) -> str:
    """The host of `host[:port]`, in lower case and without brackets."""
    text = authority.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].removesuffix(".")


class OriginGuard:
    """Decides by two headers. What was found harmless is remembered, so that the usual request costs a look-up."""

    def __init__(self, bound_host: str) -> None:
        self._loopback = is_loopback(bound_host)
        self._known: set[tuple[bytes | None, bytes | None]] = set()

    def refusal(self, host: bytes | None, origin: bytes | None) -> Problem | None:
        """Why a request with these headers is refused, or None. `origin` is None for a method that changes nothing."""
        if (host, origin) in self._known:
            return None
        if self._loopback and host is not None and not is_loopback(_name(host)):
            return Problem(
                403,
                f"This gateway listens on this machine only and answers to localhost, not to {_shown(host)}. "
                "To serve others, bind it to an address of theirs (setting gateway.host).",
                code="host_not_allowed",
            )
        if origin is not None and not _same_site(origin, host):
            return Problem(
                403,
                f"Requests from web pages of {_shown(origin)} are refused.",
                code="origin_not_allowed",
            )
        if len(host or b"") + len(origin or b"") <= _REMEMBERED_LENGTH:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known.add((host, origin))
        return None


def _same_site(origin: bytes, host: bytes | None) -> bool:
    """Whether a page of `origin` may post: one of this machine, or one that was served under the same host."""
    scheme, found, authority = origin.partition(b"://")
    if not found or scheme.lower() not in (b"http", b"https"):
        return False
    return is_loopback(_name(authority)) or (host is not None and authority.lower() == host.lower())


def _shown(value: bytes) -> str:
    return repr(value[:100].decode("latin-1"))
