"""Who a vendor is: the names that people and lists of prices have for the address of an API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

# The vendors whose protocols are spoken; others are called by their host, or as the published prices call them.
_KNOWN = {"api.openai.com": "openai", "api.anthropic.com": "anthropic"}
_HOSTS = {name: host for host, name in _KNOWN.items()}


def names_of(url: str) -> tuple[str, ...]:
    """What the vendor at this address may be called in a price that people set, the most exact name first:
    `host:port` where a port is given, the host, and `openai` or `anthropic` where it is theirs."""
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    port = (f"{host}:{parts.port}",) if parts.port is not None else ()
    known = (_KNOWN[host],) if host in _KNOWN else ()
    return (*port, host, *known)


def names_like(vendor: str) -> tuple[str, ...]:
    """The names of the vendor that is called so: with `openai` also `api.openai.com`, and the other way round."""
    name = vendor.lower()
    other = _KNOWN.get(name) or _HOSTS.get(name)
    return (name,) if other is None else (name, other)


def endpoint(metadata: Mapping[str, Any]) -> tuple[str, str] | None:
    """Address and model of a version that a vendor runs, from its metadata; None of one that runs on machines of one's
    own. What is missing of it is ''."""
    if metadata.get("format") != "remote":
        return None
    header = metadata.get("header")
    said = header if isinstance(header, Mapping) else {}
    return str(said.get("url", "")), str(said.get("model", ""))
