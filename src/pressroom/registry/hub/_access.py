"""Who asks, and what they may.

A key that is shown must be a good one, also where none is needed. Reading over loopback needs none, unless the setting
`hub.require_key` says so; writing always does; where the gateway listens to others, everything does.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from pressroom.kernel import Key, Keys
from pressroom.registry.hub.base import HubError, HubRequest

# What the clients' own code takes for a wrong key; anything else with 401 they take for a model that is not there.
_WRONG = "Invalid credentials in Authorization header"
#: How a key is made, where it is not known yet what it will be for.
MAKE_ONE = "press keys create NAME --right read, or --right write to push"
# Wrong keys from one address in a window, in seconds, before they are not looked up any more.
_MOST_WRONG = 60
_WINDOW_S = 60.0
_MOST_PEERS = 1_024
_MOST_GOOD = 1_024


@dataclass(frozen=True, slots=True)
class Who:
    """Who asks: with a key, or without one where `open` says that reading needs none."""

    key: Key | None
    open: bool

    @property
    def name(self) -> str:
        return self.key.name if self.key is not None else ""

    def may_read(self, name: str) -> bool:
        return self.key.may("read", name) if self.key is not None else self.open

    def read(self, name: str) -> None:
        """Raises HubError where this model may not be read."""
        if self.key is None and not self.open:
            raise _needed("This hub answers to keys only.", "read")
        if not self.may_read(name):
            raise _may_not(self.key, "read", name)

    def write(self, name: str) -> None:
        """Raises HubError where this model may not be written."""
        if self.key is None:
            raise _needed("Writing needs a key.", "write")
        if not self.key.may("write", name):
            raise _may_not(self.key, "write", name)


class Access:
    """Finds who asks. Thread-safe; what it remembers of strangers is bounded."""

    def __init__(self, keys: Keys, *, require_key: bool) -> None:
        self._keys = keys
        self._require_key = require_key
        self._lock = threading.Lock()
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._good: OrderedDict[bytes, None] = OrderedDict()

    def who(self, request: HubRequest) -> Who:
        """Who sends the request.

        Raises:
            HubError: 401, the key is not one, or was revoked; 429, there were too many of these.
        """
        secret = _secret(request.headers.get("authorization", ""))
        if secret is None:
            return Who(None, request.local and not self._require_key)
        mark = hashlib.sha256(secret.encode()).digest()
        if self._tired_of(request.peer, mark):
            raise HubError(
                429, "too many wrong keys came from this address", hint="Wait a minute.", headers={"retry-after": "60"}
            )
        key = self._keys.find(secret)
        if key is None:
            self._was_wrong(request.peer, mark)
            raise HubError(
                401,
                "the key is not known here, or was revoked",
                hint=f"HF_TOKEN, or else what `hf auth login` kept, must be a key of this hub: {MAKE_ONE}. "
                "Without a token, models can be read from this machine unless hub.require_key is set.",
                headers={"x-error-message": _WRONG, "www-authenticate": "Bearer"},
            )
        with self._lock:
            self._good[mark] = None
            self._good.move_to_end(mark)
            if len(self._good) > _MOST_GOOD:
                self._good.popitem(last=False)
        return Who(key, request.local and not self._require_key)

    def _tired_of(self, peer: str, mark: bytes) -> bool:
        """Whether this address has shown so many wrong keys that only one that was good is looked up."""
        with self._lock:
            count, since = self._wrong.get(peer, (0, 0.0))
            return count >= _MOST_WRONG and time.monotonic() - since < _WINDOW_S and mark not in self._good

    def _was_wrong(self, peer: str, mark: bytes) -> None:
        now = time.monotonic()
        with self._lock:
            self._good.pop(mark, None)
            count, since = self._wrong.pop(peer, (0, now))
            self._wrong[peer] = (count + 1, since) if now - since < _WINDOW_S else (1, now)
            if len(self._wrong) > _MOST_PEERS:
                self._wrong.popitem(last=False)


def _secret(header: str) -> str | None:
    """The secret of an Authorization header: behind `Bearer`, or the password of `Basic`. None where there is none."""
    scheme, _, rest = header.partition(" ")
    rest = rest.strip()
    if scheme.lower() == "basic":
        try:
            rest = base64.b64decode(rest, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            return rest
    return rest if header.strip() else None


def _needed(message: str, right: str) -> HubError:
    return HubError(
        401,
        message,
        hint=f"Make one (press keys create NAME --right {right}) and set HF_TOKEN to it.",
        headers={"www-authenticate": "Bearer"},
    )


def _may_not(key: Key | None, right: str, name: str) -> HubError:
    assert key is not None
    return HubError(
        403,
        f"the key {key.name!r} may not {right} {name}: it has {', '.join(key.rights)}",
        hint=f"Use a key with the right {right} (or {right}:{name}): press keys create NAME --right {right}:{name}",
    )
