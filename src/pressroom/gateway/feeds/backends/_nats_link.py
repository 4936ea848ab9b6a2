"""A connection to NATS that is kept for as long as it is wanted, whatever becomes of the server."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from pressroom.gateway.feeds._credentials import existing_file, secret
from pressroom.gateway.feeds.base import Address, FeedError
from pressroom.kernel import MissingDependencyError

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext

_log = logging.getLogger(__name__)

#: How long the server may take to answer.
SETTLE_S = 5.0
_CONNECT_S = 10.0
# Each server of an address is tried so often before the first connection is given up; later ones never are.
_TRIES = 2
_RECONNECT_WAIT_S = 0.5


class Link:
    """The connection of one source or sink, kept for as long as it is open."""

    def __init__(self, address: Address, environ: Mapping[str, str]) -> None:
        self.address = address
        self.subject = address.name
        self._environ = environ
        self._client: Client | None = None
        self._refused = asyncio.Event()
        self._reason = ""

    @property
    def client(self) -> Client:
        """The client. Raises FeedError where the server has ended the connection for good."""
        assert self._client is not None
        if self._client.is_closed:
            raise FeedError(
                f"{self.address} has ended the connection: {self._reason or 'no reason given'}",
                hint="Check the credentials and the server's log.",
            )
        return self._client

    @property
    def js(self) -> JetStreamContext:
        return self.client.jetstream(timeout=SETTLE_S)

    async def open(self) -> None:
        try:
            import nats
            from nats import errors
        except ImportError as error:
            raise MissingDependencyError(
                "NATS needs the library nats-py, which is not installed",
                hint="Install it with: pip install 'pressroom[nats]'",
                library="nats-py",
            ) from error
        options = self._options()

        tries = 0

        async def said(error: Exception) -> None:
            nonlocal tries
            tries += 1
            if tries >= _TRIES * len(self.address.hosts) or "authorization" in f"{error!r}".lower():
                self._refused.set()
            self._say(error)

        servers = [f"nats://{host}" for host in self.address.hosts_with(4222)]
        connecting = asyncio.ensure_future(
            nats.connect(
                servers,
                error_cb=said,
                name="pressroom-feed",
                max_reconnect_attempts=-1,
                reconnect_time_wait=_RECONNECT_WAIT_S,
                **options,
            )
        )
        refused = asyncio.ensure_future(self._refused.wait())
        await asyncio.wait([connecting, refused], timeout=_CONNECT_S, return_when=asyncio.FIRST_COMPLETED)
        refused.cancel()
        if not connecting.done():
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            raise self._unreachable(self._reason or "no answer")
        try:
            self._client = connecting.result()
        except (errors.Error, OSError) as error:
            raise self._unreachable(str(error) or type(error).__name__) from error
        self._reason = ""

    def _say(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        if text != self._reason:
            self._reason = text
            _log.warning("%s: %s", self.address, text)

    def _unreachable(self, why: str) -> FeedError:
        return FeedError(
            f"no connection to {self.address}: {why}",
            hint="Check that the server runs, and NATS_CREDS, or NATS_USER and NATS_PASSWORD, in the environment.",
        )

    def _options(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if creds := existing_file(self._environ, "NATS_CREDS"):
            found["user_credentials"] = str(creds)
        if seed := existing_file(self._environ, "NATS_NKEY"):
            found["nkeys_seed"] = str(seed)
        if (token := secret(self._environ, "NATS_TOKEN")) is not None:
            found["token"] = token
        if user := self._environ.get("NATS_USER"):
            found["user"] = user
            found["password"] = secret(self._environ, "NATS_PASSWORD") or ""
        if authorities := existing_file(self._environ, "NATS_CA"):
            found["tls"] = ssl.create_default_context(cafile=str(authorities))
        return found

    async def stream(self) -> str:
        """The stream that keeps the subject. Raises FeedError where there is none."""
        from nats import errors
        from nats.js import errors as js_errors

        try:
            return await self.js.find_stream_name_by_subject(self.subject)
        except js_errors.NotFoundError:
            why = "no stream of the server keeps that subject"
        except (js_errors.ServiceUnavailableError, errors.NoRespondersError, js_errors.NoStreamResponseError):
            why = "the server runs without JetStream"
        except (errors.Error, js_errors.Error) as error:
            why = str(error) or type(error).__name__
        raise FeedError(
            f"{self.address} cannot be used with acknowledgements: {why}",
            hint=f"Add a stream (nats stream add --subjects {self.subject}), or use --no-jetstream.",
        )

    async def until_settled(self, step: Callable[[], Awaitable[Any]]) -> Any:
        """Do a step again and again until the server has answered it, however long it is away."""
        from nats import errors
        from nats.js import errors as js_errors

        pause_s = 0.1
        while True:
            self.client  # noqa: B018  raises where it is over
            try:
                return await step()
            except (TimeoutError, errors.Error, OSError) as error:
                if isinstance(error, errors.MaxPayloadError | js_errors.BadRequestError | js_errors.NotFoundError):
                    raise
                self._say(error)
                # A server that has just started knows its streams a moment later.
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, 5.0)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None and not client.is_closed:
            from nats import errors

            if client.is_connected:
                try:
                    await client.flush(timeout=int(SETTLE_S))
                except (errors.Error, TimeoutError, OSError) as error:
                    _log.warning("%s went away before its end: %s", self.address, error)
            await client.close()
