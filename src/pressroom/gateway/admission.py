"""Who asks, and whether it may be answered: the words that keys, budgets, the ledger and the doors share.

All of it is used on the gateway's event loop, for every request: plain objects with slots, integers for amounts, no
waiting. Money is in whole nano-dollars (10^-9 USD): vendors' prices are multiples of that for one token, micro-dollars
would round a single token to nothing.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pressroom.gateway.problems import Problem

_REMEMBERED = 1_024


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one key may use at most: requests and tokens a minute, and requests at once. None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    parallel: int | None = None


class Caller:
    """Who asks. `key` and `team` are names, '' where nobody said who asks; `patterns` are of the models it may ask
    (`*` for all); `admin` says whether it may also load models and let them go. `purse` belongs to the treasury."""

    __slots__ = ("_may", "admin", "key", "limits", "patterns", "purse", "team")

    def __init__(
        self,
        key: str = "",
        team: str = "",
        *,
        patterns: tuple[str, ...] = ("*",),
        limits: Limits | None = None,
        admin: bool = False,
    ) -> None:
        self.key = key
        self.team = team
        self.admin = admin
        self.patterns = patterns
        self.limits = limits or Limits()
        self.purse: Any = None
        self._may: dict[str, bool] = {}

    def may_ask(self, model: str) -> bool:
        """Whether it may ask this model."""
        known = self._may.get(model)
        if known is None:
            if len(self._may) >= _REMEMBERED:
                self._may.clear()
            known = self._may[model] = any(fnmatch.fnmatchcase(model, pattern) for pattern in self.patterns)
        return known


class Client:
    """Who sends a request, and what its headers say about how: a `tag` that rules, splits and the ledger know; whether
    the answer must be `fresh` (none that was kept), and whether the cache may know of it at all (`store`)."""

    __slots__ = ("caller", "fresh", "store", "tag")

    def __init__(self, caller: Caller, tag: str = "", *, fresh: bool = False, store: bool = True) -> None:
        self.caller = caller
        self.tag = tag
        self.fresh = fresh
        self.store = store


#: Nobody who said who it is, where nobody has to.
ANONYMOUS = Client(Caller(admin=True))


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a request is not admitted. `short` is what it lacks: `requests`, `tokens` or `parallel` of a rate, `budget`,
    `price` (nobody knows what it would cost), or `ledger` (it could not be written down)."""

    problem: Problem
    short: str
