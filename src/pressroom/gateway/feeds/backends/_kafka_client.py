"""What sources and sinks of Kafka have in common: the library, its options, and the first connection."""

from __future__ import annotations

import asyncio
import importlib
import ssl
from collections.abc import Mapping
from typing import Any

from pressroom.gateway.feeds._credentials import existing_file, secret
from pressroom.gateway.feeds.base import Address, FeedError
from pressroom.kernel import MissingDependencyError

#: How long the first connection may take.
OPEN_S = 15.0
_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


def library() -> Any:
    try:
        return importlib.import_module("aiokafka")
    except ImportError as error:
        raise MissingDependencyError(
            "Kafka needs the library aiokafka, which is not installed",
            hint="Install it with: pip install 'pressroom[kafka]'",
            library="aiokafka",
        ) from error


def refusals() -> tuple[type[Exception], ...]:
    """What no repetition helps against."""
    errors = library().errors
    return (
        errors.TopicAuthorizationFailedError,
        errors.GroupAuthorizationFailedError,
        errors.ClusterAuthorizationFailedError,
        errors.AuthenticationFailedError,
        errors.SaslAuthenticationFailed,
    )


def options(address: Address, environ: Mapping[str, str]) -> dict[str, Any]:
    user = environ.get("KAFKA_USERNAME")
    protocol = environ.get("KAFKA_SECURITY_PROTOCOL") or ("SASL_PLAINTEXT" if user else "PLAINTEXT")
    mechanism = environ.get("KAFKA_SASL_MECHANISM") or "PLAIN"
    for variable, value, known in (
        ("KAFKA_SECURITY_PROTOCOL", protocol, _PROTOCOLS),
        ("KAFKA_SASL_MECHANISM", mechanism, _MECHANISMS),
    ):
        if value not in known:
            raise FeedError(f"{variable}={value!r} is not one that is known", hint=f"Known: {', '.join(known)}.")
    made: dict[str, Any] = {
        "bootstrap_servers": address.hosts_with(9092),
        "client_id": "pressroom-feed",
        "security_protocol": protocol,
    }
    if protocol.startswith("SASL"):
        made |= {
            "sasl_mechanism": mechanism,
            "sasl_plain_username": user or "",
            "sasl_plain_password": secret(environ, "KAFKA_PASSWORD") or "",
        }
    if protocol.endswith("SSL"):
        authorities = existing_file(environ, "KAFKA_CA")
        made["ssl_context"] = ssl.create_default_context(cafile=str(authorities) if authorities else None)
    return made


async def start(client: Any, address: Address) -> None:
    errors = library().errors
    try:
        async with asyncio.timeout(OPEN_S):
            await client.start()
    except (errors.KafkaError, OSError, ValueError) as error:  # a TimeoutError is an OSError
        await client.stop()
        raise FeedError(
            f"no connection to {address}: {str(error) or 'no answer'}",
            hint="Check that the broker runs, and KAFKA_USERNAME and KAFKA_PASSWORD in the environment.",
        ) from error
