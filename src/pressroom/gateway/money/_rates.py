"""Limits of one key: requests and tokens in a minute as buckets that are refilled all the time, and requests at once.

A bucket holds what may be used at once, at most the limit of a minute. It is counted in whole numbers: a request or a
token is `MINUTE` units, and the limit of it flows in with every nanosecond of the monotonic clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pressroom.gateway.money._refusals import at_once, too_fast, too_large

if TYPE_CHECKING:
    from pressroom.gateway.admission import Limits, Refused

#: Nanoseconds in a minute.
MINUTE = 60 * 10**9


class Bucket:
    """`level` units are there at `at` (nanoseconds), `full` at most."""

    __slots__ = ("at", "full", "level", "limit")

    def __init__(self, limit: int, now: int) -> None:
        self.limit = limit
        self.level = self.full = limit * MINUTE
        self.at = now

    def fill(self, now: int) -> int:
        """Let flow in what has since the last time; the level."""
        level = self.level + (now - self.at) * self.limit
        if level > self.full:
            level = self.full
        self.level = level
        self.at = now
        return level

    def change(self, limit: int, now: int) -> None:
        """Another limit; what was used of the old one was used."""
        used = self.full - self.fill(now)
        self.limit = limit
        self.full = limit * MINUTE
        self.level = self.full - used

    def wait_ns(self, units: int) -> int | None:
        """Until so many units are there; None: they never are."""
        if units > self.full or not self.limit:
            return None
        return -((self.level - units) // self.limit)


class Limiter:
    """The limits of one key, and how far they are used."""

    __slots__ = ("key", "parallel", "requests", "running", "tokens")

    def __init__(self, key: str) -> None:
        self.key = key
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.parallel: int | None = None
        self.running = 0

    def set(self, limits: Limits, now: int) -> None:
        """These are the limits now; what is used stays used."""
        self.requests = _changed(self.requests, limits.requests_per_minute, now)
        self.tokens = _changed(self.tokens, limits.tokens_per_minute, now)
        self.parallel = limits.parallel

    def take(self, tokens: int, now: int) -> Refused | None:
        """One request with so many tokens begins, if all limits let it."""
        parallel = self.parallel
        if parallel is not None and self.running >= parallel:
            return at_once(self.key, parallel)
        requests = self.requests
        if requests is not None and requests.fill(now) < MINUTE:
            return too_fast(self.key, "requests", requests.limit, 1, requests.wait_ns(MINUTE))
        if self.tokens is not None:
            refused = self.take_tokens(tokens, now)
            if refused is not None:
                return refused
        if requests is not None:
            requests.level -= MINUTE
        self.running += 1
        return None

    def take_tokens(self, tokens: int, now: int) -> Refused | None:
        """Of a request that runs already: so many tokens more."""
        bucket = self.tokens
        if bucket is None:
            return None
        units = tokens * MINUTE
        if bucket.fill(now) < units:
            wait = bucket.wait_ns(units)
            if wait is None:
                return too_large(self.key, bucket.limit, tokens)
            return too_fast(self.key, "tokens", bucket.limit, tokens, wait)
        bucket.level -= units
        return None

    def untake(self, tokens: int) -> None:
        """It was not admitted after all: as if it had never come."""
        self.running -= 1
        if self.requests is not None:
            self.requests.level += MINUTE
        if self.tokens is not None:
            self.tokens.level += tokens * MINUTE

    def leave(self) -> None:
        """One does not run any more; what it took of the minute stays taken."""
        self.running -= 1

    def give(self, tokens: int) -> None:
        """One has ended, and so many tokens that were taken for it were not used (below 0: more were)."""
        self.running -= 1
        if self.tokens is not None:
            self.tokens.level += tokens * MINUTE


def _changed(bucket: Bucket | None, limit: int | None, now: int) -> Bucket | None:
    if limit is None:
        return None
    if bucket is None:
        return Bucket(limit, now)
    if bucket.limit != limit:
        bucket.change(limit, now)
    return bucket
