"""The engine put together: from the description of a model and the options of its deployment to a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pressroom.engines._vendor import keys
from pressroom.engines._vendor.anthropic import Anthropic
from pressroom.engines._vendor.asking import Vendor
from pressroom.engines._vendor.breaker import Breaker
from pressroom.engines._vendor.connection import LOOPBACK, Connection
from pressroom.engines._vendor.openai import OpenAI
from pressroom.engines._vendor.options import Options
from pressroom.engines._vendor.protocol import Protocol
from pressroom.engines._vendor.server import VendorServer

_PROTOCOLS: dict[str, type[Protocol]] = {"openai": OpenAI, "anthropic": Anthropic}


class SetupError(Exception):
    """The description and the options do not go together."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def check(described: Mapping[str, Any], options: Options) -> None:
    """Raise SetupError where a vendor cannot, or must not, be asked so."""
    parts = urlsplit(str(described["url"]))
    if parts.scheme == "http" and parts.hostname not in LOOPBACK and not options.allow_http:
        raise SetupError(
            f"{described['url']} is not encrypted: everybody on the way could read the key",
            "Register the model with https://, or say --option allow_http=true where the network is your own.",
        )
    if options.completions == "native" and described["protocol"] == "anthropic":
        raise SetupError("Anthropic's API has no completions", "Take the option completions=chat, or completions=off.")


def key_for(described: Mapping[str, Any], options: Options) -> keys.Key:
    """The key to send. Nobody's key goes to a host that it was not meant for: the usual variable of a vendor is for
    the vendor's own host, and every other one is named by whoever deploys.

    Raises:
        KeyProblem: there is none, or it is not said which.
    """
    kind, host = _PROTOCOLS[described["protocol"]], urlsplit(str(described["url"])).hostname
    if options.key_file:
        return keys.KeyInFile(Path(options.key_file).expanduser())
    if options.key_env:
        return keys.from_environment(options.key_env)
    if host == kind.host and not options.no_key:
        return keys.from_environment(kind.variable)
    if host in LOOPBACK or options.no_key:
        return keys.Key()
    raise keys.KeyProblem(
        f"it is not said which key {host} gets; {kind.variable} is for {kind.host} and goes nowhere else by itself",
        "Name it: --option key_env=NAME (a variable) or --option key_file=/PATH, or --option no_key=true.",
    )


def capabilities_of(described: Mapping[str, Any], options: Options) -> dict[str, bool]:
    """What the model can do: what its protocol can, unless the description says otherwise."""
    can = {
        **_PROTOCOLS[described["protocol"]].capabilities,
        "says_counts": True,
        "completions": options.completions != "off",
        # Several prompts are one request only where the vendor has completions of its own.
        "several": options.completions == "native",
    }
    prefix = "capabilities."
    said = {name[len(prefix) :]: bool(value) for name, value in described.items() if name.startswith(prefix)}
    return {**can, **said}


def server_for(name: str, described: Mapping[str, Any], options: Options, key: keys.Key, *, slots: int) -> VendorServer:
    """A server that answers as `name` and asks the vendor at most `slots` things at once. On the event loop that will
    run it.

    Raises:
        LineError: certificates or a proxy cannot be used.
    """
    url = str(described["url"])
    connection = Connection(url, options, key, slots=slots)
    connection.open()
    kind = _PROTOCOLS[described["protocol"]]
    protocol = kind(
        str(described["model"]),
        own=urlsplit(url).hostname == kind.host,
        extra=options.extra,
        max_tokens=options.max_tokens_default,
        scrubbed=key.scrubbed,
    )
    vendor = Vendor(protocol, connection, options, key, Breaker(options.breaker_failures, options.breaker_s))
    return VendorServer(name, vendor, options, key, capabilities_of(described, options))
