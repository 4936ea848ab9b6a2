"""The line to a vendor: one pool of TLS connections with timeouts and bounds, and plain words for what goes wrong."""

from __future__ import annotations

import asyncio
import logging
import ssl
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from urllib.parse import urlsplit

import aiohttp

from pressroom.engines._vendor.events import EventReader
from pressroom.engines._vendor.keys import Key
from pressroom.engines._vendor.options import Options
from pressroom.engines._vendor.refusals import Refusal, from_answer, malformed

_log = logging.getLogger(__name__)

#: An answer that is not streamed is kept until it is whole, so that one that breaks off is still an error.
MOST_ANSWER = 64 << 20
_MOST_ERROR = 64 << 10
LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))
_CHUNK = 64 << 10
_DRAIN_S = 1.0


class LineError(Exception):
    """The line cannot be set up as the options say."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Connection:
    """Sends requests below the address `url`, at most `slots` at once. `open` before use, on the loop that uses it."""

    def __init__(self, url: str, options: Options, key: Key, *, slots: int) -> None:
        self._url = url
        self._options = options
        self._key = key
        self._slots = slots
        self._tls = _tls(options.ca_file)
        self._proxy = proxy_for(url)
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        options = self._options
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._slots, ssl=self._tls),
            # What takes long is bounded by whoever waits: an answer that is not streamed is silent until it is whole.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=options.connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "pressroom", "Accept-Encoding": "identity"},
            # The proxy is found above: aiohttp's own way reads ~/.netrc as well, and would send what it finds there.
            trust_env=False,
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def post(self, path: str, body: bytes, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; the answer has status 200. Its connection is closed if it is left before it is complete, so
        that the vendor stops.

        Raises:
            Refusal: any other status, or none.
        """
        assert self._session is not None
        with _plain_words():
            response = await self._session.post(
                self._url + path,
                data=body,
                headers={"Content-Type": "application/json", **headers},
                # A vendor that sends us elsewhere would have the key sent there.
                allow_redirects=False,
                proxy=self._proxy,
            )
        try:
            if response.status != 200:
                error = await self._bounded(response, _MOST_ERROR, cut=True)
                raise from_answer(response.status, error, response.headers, self._key.scrubbed)
            yield response
        finally:
            response.close() if not response.content.at_eof() else response.release()

    async def whole(self, response: aiohttp.ClientResponse) -> bytes:
        """The complete answer. Raises Refusal where it breaks off, or is over 64 MiB."""
        return await self._bounded(response, MOST_ANSWER, cut=False)

    async def events(self, response: aiohttp.ClientResponse, deadline: float) -> AsyncIterator[list[bytes]]:
        """The data of its events, as many at once as came together, until `deadline` (of the loop's clock).

        Raises:
            Refusal: it breaks off, is silent for too long after it began, or is not complete at the deadline.
        """
        reader = EventReader()
        began = False
        while True:
            until = min(deadline, asyncio.get_running_loop().time() + self._options.silence_s) if began else deadline
            with _plain_words():
                try:
                    async with asyncio.timeout_at(until):
                        received = await response.content.readany()
                except TimeoutError as error:
                    raise (too_late(self._options) if until == deadline else self._silent()) from error
            began = True
            events = reader.feed(received) if received else reader.end()
            if events:
                yield events
            if not received:
                return

    async def drain(self, response: aiohttp.ClientResponse) -> None:
        """Read the end of an answer whose last event was seen, so that its connection can be used again."""
        with suppress(TimeoutError, aiohttp.ClientError, ConnectionError):
            async with asyncio.timeout(_DRAIN_S):
                while await response.content.readany():
                    pass

    def _silent(self) -> Refusal:
        message = f"The vendor said nothing for {self._options.silence_s:g} s in the middle of its answer."
        return Refusal(504, message, code="vendor_timeout", down=True)

    async def _bounded(self, response: aiohttp.ClientResponse, most: int, *, cut: bool) -> bytes:
        pieces: list[bytes] = []
        size = 0
        with _plain_words():
            while received := await response.content.read(_CHUNK):
                pieces.append(received)
                size += len(received)
                if size > most:
                    if cut:
                        break
                    raise malformed(f"it is longer than {most} bytes")
        return b"".join(pieces)[:most]


def too_late(options: Options) -> Refusal:
    """The deadline passed."""
    message = f"The vendor's answer was not complete after {options.timeout_s:g} s."
    return Refusal(504, message, code="vendor_timeout", down=True)


@contextmanager
def _plain_words() -> Iterator[None]:
    """What the library raises as a Refusal, in words of ours: its own may hold the address of a proxy."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        _log.warning("the vendor's certificate is not trusted: %s", error.certificate_error)
        message = "The vendor's certificate is not trusted here."
        raise Refusal(502, message, code="vendor_tls", down=True) from error
    except aiohttp.ClientSSLError as error:
        raise Refusal(502, "TLS with the vendor failed.", code="vendor_tls", again=True, down=True) from error
    except aiohttp.ConnectionTimeoutError as error:
        raise Refusal(
            504, "The vendor did not accept a connection in time.", code="vendor_timeout", again=True, down=True
        ) from error
    except (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError) as error:
        proxy = isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError)
        what = "The proxy to the vendor" if proxy else "The vendor"
        message = f"{what} cannot be reached."
        raise Refusal(503, message, code="vendor_unreachable", retry_after_s=1, again=True, down=True) from error
    except (aiohttp.ClientError, ConnectionError) as error:
        message = "The vendor closed the connection before its answer was complete."
        silent = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
        raise Refusal(502, message, code="vendor_error", again=True, down=True, silent=silent) from error


def proxy_for(url: str) -> str | None:
    """The HTTP proxy that the environment names for an address (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY).

    Raises:
        LineError: it is of a kind that is not spoken here.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = urllib.request.getproxies_environment()
    found = proxies.get(parts.scheme) or proxies.get("all")
    if not found or host in LOOPBACK or urllib.request.proxy_bypass(parts.netloc):
        return None
    if "://" not in found:
        found = f"http://{found}"
    if urlsplit(found).scheme not in ("http", "https"):
        raise LineError(
            "the environment names a proxy that is not an HTTP proxy", "Name one with http:// in HTTPS_PROXY."
        )
    return found


def _tls(ca_file: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:  # ssl.SSLError is one
        raise LineError(
            f"the certificates in {ca_file} cannot be read: {error.strerror or 'it has none'}",
            "The option ca_file names a PEM file with the certificates to trust.",
        ) from error
