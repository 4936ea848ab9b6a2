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
    """What one key may use at most: requests and tokens in any minute, and requests at once. None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    parallel: int | None = None


class Caller:
    """Who asks. `key` and `team` are names, '' where nobody said who asks; `patterns` are of the models it may ask
    (`*` for all). `purse` belongs to the treasury."""

    __slots__ = ("_may", "key", "limits", "patterns", "purse", "team")

    def __init__(
        self, key: str = "", team: str = "", *, patterns: tuple[str, ...] = ("*",), limits: Limits | None = None
    ) -> None:
        self.key = key
        self.team = team
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


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a request is not admitted. `short` is what it lacks: `requests`, `tokens` or `parallel` of a rate, `budget`,
    `price` (nobody knows what it would cost), or `ledger` (it could not be written down)."""

    problem: Problem
    short: str
