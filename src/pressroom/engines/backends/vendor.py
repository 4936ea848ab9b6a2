"""A model at a vendor, behind the contract of an engine of one's own: any server with OpenAI's API, or Anthropic's.

A process of its own answers the gateway on loopback and asks the vendor, so that TLS, keys, retries and translation
stay out of the gateway. What it runs is a version of the format `remote`: `press pull openai:MODEL[@URL]`.

Options of a deployment, seconds where a name ends in `_s`: `key_env` (the variable with the key) or `key_file` (a file
with it that others cannot read; read again when it changes) or `no_key`; `allow_http`; `ca_file` (certificates to
trust); `connect_timeout_s`, `silence_s` (within a stream), `timeout_s` (a whole request); `retries`;
`breaker_failures`, `breaker_s`; `completions` (`chat`, `native` or `off`); `fields` (names beyond
OpenAI's that the vendor takes); `max_tokens_default` (Anthropic).
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pressroom.engines import child
from pressroom.engines.base import Capabilities
from pressroom.engines.process import ProcessEngine
from pressroom.kernel import EngineError, PressroomError

if TYPE_CHECKING:
    from pressroom.store import WeightsInfo

_DESCRIPTION = "endpoint.json"


class Backend(ProcessEngine):
    """A vendor's model. What exactly it can do is in the endpoint: protocol and description say it."""

    capabilities = Capabilities(tools=True, says_counts=True)
    formats = ("remote",)
    requires = ("aiohttp", "orjson", "uvloop")
    extra = "vendors"
    # The work is done elsewhere: what is bounded here are connections.
    default_slots = 256
    elsewhere = True

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        from pressroom.engines._vendor import options as known

        try:
            known.read(options)
        except known.OptionError as error:
            raise EngineError(str(error), hint=error.hint) from None


def main() -> None:
    """The engine's process."""
    import asyncio

    import uvloop

    from pressroom.engines._vendor import keys, options, setting_up
    from pressroom.engines._vendor.connection import LineError

    spec = child.read_spec()
    described = _description(spec)
    said = described.metadata
    try:
        wanted = options.read(spec["options"])
        setting_up.check(said, wanted)
        key = setting_up.key_for(said, wanted)
    except (options.OptionError, setting_up.SetupError, keys.KeyProblem) as error:
        child.failed(str(error), hint=error.hint)
    handler = logging.StreamHandler()
    handler.setFormatter(keys.ScrubbingFormatter(key))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    listening = threading.Event()
    port, slots = 0, max(1, int(spec["slots"]))

    async def serve() -> None:
        nonlocal port
        try:
            server = setting_up.server_for(spec["name"], said, wanted, key, slots=slots)
        except LineError as error:
            child.failed(str(error), hint=error.hint)
        port = await server.listen()
        listening.set()
        await asyncio.Event().wait()

    # The main thread waits for the parent; signals arrive there.
    thread = threading.Thread(target=lambda: uvloop.run(serve()), name="vendor", daemon=True)
    thread.start()
    while not listening.wait(0.1):
        if not thread.is_alive():
            child.failed("it could not open a port on 127.0.0.1", hint="Its last lines say why.")
    child.ready(
        host="127.0.0.1",
        port=port,
        context=int(spec["context"]) or described.context_length or 0,
        slots=slots,
        version=f"vendor 1 (aiohttp {importlib.metadata.version('aiohttp')})",
        capabilities=setting_up.capabilities_of(said, wanted),
        protocol=said["protocol"],
        url=said["url"],
        model=said["model"],
    )
    child.wait_for_parent()
    # Requests may still run; the kernel closes their connections, and the vendor stops.
    os._exit(0)


def _description(spec: dict[str, Any]) -> WeightsInfo:
    from pressroom.store import inspect

    if not spec["model"]:
        child.failed(
            "vendor needs to know which model to ask for, and got nothing",
            hint="Deploy what `press pull openai:MODEL[@URL]` or `press pull anthropic:MODEL[@URL]` registered.",
        )
    try:
        return inspect(Path(spec["model"]), name=_DESCRIPTION)
    except PressroomError as error:
        child.failed(error.message, hint=error.hint)


if __name__ == "__main__":
    main()
