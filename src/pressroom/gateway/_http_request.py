"""A request as it came, and those that came before."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from pressroom.gateway._entrance import Memo

if TYPE_CHECKING:
    from pressroom.gateway._incoming import Incoming

_KEPT, _LONGEST = 256, 2_048
_END = b"\r\n\r\n"


class Request:
    """A request as it came. Names of headers are in lower case; `path` has no query and is not decoded."""

    __slots__ = ("body", "headers", "held", "incoming", "keep_alive", "memo", "method", "path", "target", "version")

    def __init__(self, target: bytes, memo: Memo | None = None) -> None:
        self.target = target
        self.path = b""
        self.method = b""
        self.version = "1.1"
        self.headers: dict[bytes, bytes] = {}
        #: What is known of who sends it; all requests with this head share it.
        self.memo = memo or Memo()
        self.body = b""
        self.keep_alive = True
        #: Bytes that its body takes of what the listener allows to all.
        self.held = 0
        #: Of a request under one of the listener's `streamed` prefixes: its body, which is still coming.
        self.incoming: Incoming | None = None

    def again(self, body: bytes) -> Request:
        """A request with the same head and another body."""
        found = Request(self.target, self.memo)
        found.path, found.method, found.version, found.headers = self.path, self.method, self.version, self.headers
        found.body = body
        return found

    @property
    def decoded_path(self) -> str:
        """The path with its percent escapes resolved."""
        return unquote_to_bytes(self.path).decode(errors="replace")


class Heads:
    """Heads of requests that were parsed.

    A client sends the same one again and again, and llhttp with its callbacks takes a tenth of what a request costs.
    One that is known needs no second look if it comes in one piece with a body of the length it says.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Request, int]] = {}

    def known(self, data: bytes) -> Request | None:
        """The request that these bytes are, all of it and nothing more, if its head was seen before."""
        end = data.find(_END) + len(_END)
        found = self._known.get(data[:end])
        if found is None or len(data) - end != found[1]:
            return None
        return found[0].again(data[end:])

    def remember(self, data: bytes, request: Request) -> None:
        """These bytes are this request, as it was parsed from them."""
        end = data.find(_END) + len(_END)
        headers = request.headers
        if (
            end > _LONGEST
            or not request.keep_alive
            or len(data) - end != int(headers.get(b"content-length", b"0"))
            or b"transfer-encoding" in headers
            or b"expect" in headers
            or b"upgrade" in headers
        ):
            return
        if len(self._known) >= _KEPT:
            self._known.clear()
        self._known[data[:end]] = (request.again(b""), len(data) - end)
