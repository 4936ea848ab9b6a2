"""A model at a vendor: no weights, but a small JSON file `endpoint.json` that says where it answers.

    {"protocol": "openai", "url": "https://api.openai.com/v1", "model": "gpt-4o-mini"}

`context` (tokens) and `capabilities` (names with true or false) may stand in it as well. A key never does.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from pressroom.store._opening import open_regular, unreadable
from pressroom.store.formats._json import parsed_object
from pressroom.store.formats._naming import Named
from pressroom.store.formats.base import WeightsInfo

NAME = "endpoint.json"
PROTOCOLS = ("openai", "anthropic")
# What an engine may be able to do: the fields of `engines.base.Capabilities`, which this layer does not see.
CAPABILITIES = frozenset(
    ("chat", "completions", "streaming", "embeddings", "logprobs", "json_schema", "tools", "several")
)
_MOST = 64 << 10
_REQUIRED = ("protocol", "url", "model")
_OPTIONAL = ("context", "capabilities")
_MODEL = re.compile(r"(?!@)(?!.*//)[\x21-\x7e]{1,200}")
_URL = re.compile(r"https?://[\x21-\x7e]{1,2000}")


def read(named: Named) -> WeightsInfo:
    """What the description says: `format` is `remote`, and `metadata` has protocol, url, model, and what is said of
    its capabilities (`capabilities.tools`).

    Raises:
        MalformedWeightsError: it is no such description, or its address holds what does not belong there.
    """
    found = parsed_object(named, _bytes(named), "it")
    unknown = sorted(found.keys() - {*_REQUIRED, *_OPTIONAL})
    missing = [key for key in _REQUIRED if key not in found]
    if unknown or missing:
        # Unknown names are not shown: somebody may have written a key there.
        what = f"it lacks {', '.join(missing)}" if missing else f"it has {len(unknown)} fields that it cannot have"
        hint = f"It has {', '.join(_REQUIRED)}, and may have {' and '.join(_OPTIONAL)}. A key never stands in it."
        raise named.malformed(what, hint=hint)
    if found["protocol"] not in PROTOCOLS:
        raise named.malformed("its protocol is not known", hint=f"Protocols: {', '.join(PROTOCOLS)}.")
    if not isinstance(found["model"], str) or not _MODEL.fullmatch(found["model"]):
        raise named.malformed("its model is not a name of up to 200 plain characters", hint="Write the vendor's name.")
    problem = _wrong_with(found["url"])
    if problem:
        raise named.malformed(problem, hint="Write it as https://HOST/v1; a key is named when it is deployed.")
    context = found.get("context")
    if context is not None and (type(context) is not int or not 1 <= context < 1 << 31):
        raise named.malformed("its context is not a number of tokens", hint="Write a whole number, or leave it out.")
    capabilities = found.get("capabilities", {})
    if (
        not isinstance(capabilities, dict)
        or not capabilities.keys() <= CAPABILITIES
        or not all(isinstance(value, bool) for value in capabilities.values())
    ):
        hint = f"Write true or false for any of {', '.join(sorted(CAPABILITIES))}."
        raise named.malformed("its capabilities are not names with true or false", hint=hint)
    metadata: dict[str, str | int | float | bool] = {key: found[key] for key in _REQUIRED}
    metadata.update({f"capabilities.{name}": value for name, value in capabilities.items()})
    return WeightsInfo(format="remote", parameters=0, context_length=context, metadata=metadata)


def _wrong_with(url: Any) -> str:
    """What is wrong with an address, without saying it: what stands in a wrong one may be a password."""
    if not isinstance(url, str) or not _URL.fullmatch(url):
        return "its url is not an address with http or https"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # which reads the port, and refuses what is none
    except ValueError:
        return "its url is not an address"
    if not host:
        return "its url names no host"
    if "@" in url:
        return "its url holds a user or a password"
    if parts.query or parts.fragment or "?" in url or "#" in url:
        return "its url holds a query, which may be a key"
    return ""


def _bytes(named: Named) -> bytes:
    with open_regular(named.path) as file:
        try:
            raw = file.read(_MOST + 1)
        except OSError as error:
            raise unreadable(named.path, error) from error
    if len(raw) > _MOST:
        raise named.malformed(f"it is longer than {_MOST} bytes")
    return raw
