"""Finds who asks: from the secret in a request's headers to its `Caller`, on the event loop, without the database.

A thread looks at the keys' counter of changes twice a second and brings what changed to the loop. Of a secret only its
SHA-256 is ever held. Guessing is met by the size of a secret (256 random bits) and by what a wrong one costs here: one
hash, nothing that is remembered, nobody who is locked out.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from pressroom.gateway._origin import is_loopback
from pressroom.gateway.admission import Caller, Limits
from pressroom.gateway.problems import Problem, server_error

if TYPE_CHECKING:
    from pressroom.kernel import Key, Keys

_log = logging.getLogger(__name__)

_LOOK_S = 0.5
_JOIN_S = 10.0
_RETRY_S = 5
# What our keys begin with; other clients' fillers ("none", "sk-…") are no attempt at one.
_FORM = b"pr-"
# No secret of ours is so long; of a longer one no more is hashed.
_LONGEST = 256

_MAKE_ONE = "Whoever runs this gateway makes one with `press keys create NAME --right ask`."
_MISSING = Problem(
    401,
    f"This gateway answers to keys only: send one as `Authorization: Bearer KEY`. {_MAKE_ONE}",
    code="invalid_api_key",
)
_WRONG = Problem(401, f"The key is not known here, was revoked, or has expired. {_MAKE_ONE}", code="invalid_api_key")
_UNREAD = server_error(
    503, "The gateway cannot read its keys; its log says why.", code="gateway_error", retry_after_s=_RETRY_S
)


class Access:
    """Who may ask. `renew` once, then `start`, and `close` at the end; without keys (None) nobody has one.

    A key is needed where `require_key` says so or the gateway listens to more than loopback (`bound_to`). Where none is
    needed, who shows none, or something that is none of ours, is the anonymous caller; a key that is shown must be good
    all the same. If the keys cannot be read, those that are known stay in force; before the first look none is.
    """

    def __init__(self, keys: Keys | None = None, *, require_key: bool = False, loopback: bool = True) -> None:
        #: Rises whenever what `caller` gives may have changed.
        self.generation = 0
        #: Who asks without a key, where that is allowed.
        self.anonymous = Caller(admin=True)
        self._keys = keys
        self._require_key = require_key
        self._needed = require_key or not loopback
        self._internal_secret = f"pri-{secrets.token_urlsafe(32)}"
        self._internal_digest = hashlib.sha256(self._internal_secret.encode()).digest()
        # On the loop: what is in force.
        self._callers: dict[bytes, Caller] = {}
        self._idle: dict[bytes, Problem] = {}
        self._names: dict[str, bytes] = {}
        self._live: dict[bytes, Key] = {}
        self._taken = 0
        # Of who looks, under the lock: what was read.
        self._looking = threading.Lock()
        self._known: dict[bytes, Key] = {}
        self._changes: int | None = None
        self._live_now: dict[bytes, Key] = {}
        # The times, in seconds since the epoch, between which `_live_now` holds: a key expires, or the clock is set.
        self._look_from = self._look_until = 0.0
        self._looks = 0
        self._complained = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def bound_to(self, host: str) -> None:
        """The gateway listens there: keys are needed where others can reach it."""
        self._needed = self._require_key or not is_loopback(host)
        self.generation += 1

    @property
    def needs_key(self) -> bool:
        """Whether who shows no key is refused."""
        return self._needed

    # On the event loop.

    def caller(
        self, authorization: bytes | None, api_key: bytes | None = None, behalf: bytes | None = None
    ) -> Caller | Problem:
        """Who asks, from the values of the headers `Authorization` (`Bearer KEY`, or `Basic` with the key as password),
        `x-api-key`, and `pressroom-on-behalf`, which counts beside `internal()` only."""
        if authorization is not None and authorization.startswith(b"Bearer "):
            found = self._callers.get(hashlib.sha256(authorization[7:]).digest())
            if found is not None:
                return found
        elif authorization is None and api_key is None:
            return _MISSING if self._needed else self.anonymous
        return self._look(authorization, api_key, behalf)

    def internal(self) -> str:
        """A secret of this process, for what the server asks itself: sent as `Bearer`, with the name of the key that it
        asks for in `pressroom-on-behalf` ('' for nobody's)."""
        return self._internal_secret

    def _look(self, authorization: bytes | None, api_key: bytes | None, behalf: bytes | None) -> Caller | Problem:
        shown = [_secret(authorization) if authorization is not None else b"", (api_key or b"").strip()]
        ours = next((secret for secret in shown if secret.startswith(_FORM)), None)
        if ours is not None:
            digest = hashlib.sha256(ours[:_LONGEST]).digest()
            return self._callers.get(digest) or self._idle.get(digest) or self._wrong()
        digest = hashlib.sha256(shown[0][:_LONGEST]).digest()
        if hmac.compare_digest(digest, self._internal_digest):
            return self._for(behalf or b"")
        if not self._needed:
            return self.anonymous
        return _WRONG if any(shown) else _MISSING

    def _for(self, behalf: bytes) -> Caller | Problem:
        """The caller with that name. What nobody's key asks was let in when it was taken: it goes on."""
        name = behalf.decode("latin-1").strip()
        if not name:
            return self.anonymous
        digest = self._names.get(name, b"")
        return self._callers.get(digest) or self._idle.get(digest) or self._wrong()

    def _wrong(self) -> Problem:
        return _UNREAD if self._keys is not None and not self._taken else _WRONG

    def _take(self, number: int, live: dict[bytes, Key]) -> None:
        """Let these keys be in force, unless later ones are."""
        if number <= self._taken:
            return
        self._taken = number
        for digest in self._live.keys() - live.keys():
            self._callers.pop(digest, None)
            self._idle.pop(digest, None)
        for digest, key in live.items():
            before = self._live.get(digest)
            if before is not key:
                self._put(digest, key, before)
        self._names = {key.name: digest for digest, key in live.items()}
        self._live = live
        self.generation += 1

    def _put(self, digest: bytes, key: Key, before: Key | None) -> None:
        patterns = tuple(
            grant.partition(":")[2] or "*" for grant in key.rights if grant.partition(":")[0] in ("ask", "admin")
        )
        if not patterns:
            self._idle[digest] = Problem(
                403,
                f"The key {key.name!r} may not ask models: it has {', '.join(key.rights)}. Use one with the right ask: "
                "press keys create NAME --right ask",
                code="insufficient_permissions",
            )
            return
        limits = Limits(
            requests_per_minute=key.requests_per_minute,
            tokens_per_minute=key.tokens_per_minute,
            parallel=key.parallel,
        )
        admin = not {"admin", "admin:*"}.isdisjoint(key.rights)
        made = Caller(key.name, key.team, patterns=patterns, limits=limits, admin=admin)
        old = self._callers.get(digest)
        if old is not None and before is not None and before.team == key.team:
            made.purse = old.purse  # what it holds and has used goes on
        self._callers[digest] = made

    # Looking at the database.

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look at the keys from now on, twice a second, and let what changed be in force on `loop`. Called on it."""
        if self._keys is None:
            return
        self._loop, self._loop_thread = loop, threading.get_ident()
        self._thread = threading.Thread(target=self._run, name="keys", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more. Again, it does nothing."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
            self._thread = None

    def renew(self) -> bool:
        """Look at the keys now; when this returns, they are in force. Whether they could be read: the log says why not.

        From any thread. On the event loop it is for the start and for tests: it waits for the database.
        """
        if self._keys is None:
            return True
        look = self._read()
        if look is None:
            return False
        if self._loop is None or self._loop.is_closed() or threading.get_ident() == self._loop_thread:
            self._take(*look)
        else:
            done: Future[None] = Future()

            def take() -> None:
                self._take(*look)
                done.set_result(None)

            self._bring(take)
            with suppress(TimeoutError):  # the loop has ended, and nobody asks any more
                done.result(_JOIN_S)
        return not self._complained

    def _run(self) -> None:
        brought = 0
        while not self._ended.wait(_LOOK_S):
            look = self._read()
            if look is not None and look[0] != brought:
                brought = look[0]
                self._bring(partial(self._take, *look))

    def _bring(self, call: Callable[[], None]) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(call)

    def _read(self) -> tuple[int, dict[bytes, Key]] | None:
        """The keys that open something now, with a number that rises when these are others than before. None where they
        could never be read."""
        assert self._keys is not None
        with self._looking:
            changed = False
            try:
                if self._changes is None or self._keys.changes() != self._changes:
                    self._changes, found = self._keys.by_digest()
                    # A key that has not changed stays the same object: `_take` knows it by that.
                    before = self._known
                    self._known = {digest: _same(before.get(digest), key) for digest, key in found.items()}
                    changed = True
                self._complained = False
            except Exception:  # the edge of the thread: what is known stays in force  # noqa: BLE001
                if not self._complained:
                    _log.warning("the keys cannot be read; those that are known stay in force", exc_info=True)
                self._complained = True
            if self._changes is None:
                return None
            now = time.time()
            if changed or not self._look_from <= now < self._look_until:
                self._live_now = {digest: key for digest, key in self._known.items() if key.live(now)}
                self._looks += 1
                ends = (key.expires for key in self._live_now.values() if key.expires is not None)
                self._look_from, self._look_until = now, min(ends, default=math.inf)
            return self._looks, self._live_now


def _same(before: Key | None, key: Key) -> Key:
    return before if before is not None and before == key else key


def _secret(authorization: bytes) -> bytes:
    """The secret of an Authorization header: behind `Bearer`, or the password of `Basic`; b"" where there is none."""
    scheme, _, rest = authorization.strip().partition(b" ")
    rest = rest.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(rest, validate=True).partition(b":")[2]
        except binascii.Error:
            return rest
    # Without a scheme, as some clients send it.
    return rest if scheme.lower() == b"bearer" else rest or scheme
