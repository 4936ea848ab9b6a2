"""What a client is told when it is not admitted, with the codes of OpenAI's API."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pressroom.gateway.admission import Refused
from pressroom.gateway.money.amounts import amount_text, budget_text
from pressroom.gateway.money.base import Unit
from pressroom.gateway.problems import Problem, server_error

if TYPE_CHECKING:
    from datetime import datetime

    from pressroom.gateway.money.base import Budget

_RATE = "rate_limit_exceeded"
_QUOTA = "insufficient_quota"
# When something that runs will have ended is not known: soon enough to try, and not at once.
_SOON_S = 1
_S = 10**9


def too_fast(key: str, what: str, limit: int, asked: int, wait_ns: int | None) -> Refused:
    """The bucket of `requests` or `tokens` has not enough."""
    if what == "tokens":
        message = f"{_whose(key)} may use {limit:,} tokens a minute. It asks for {asked:,} tokens."
    else:
        message = f"{_whose(key)} may make {limit:,} requests a minute."
    seconds = None
    if wait_ns is not None:
        seconds = max(1, -(-wait_ns // _S))
        message += f" Try again in {seconds} s."
    return Refused(Problem(429, message, what, None, _RATE, seconds), what)


def too_large(key: str, limit: int, asked: int) -> Refused:
    """One request may take more tokens than a minute has: it never fits."""
    message = (
        f"{_whose(key)} may use {limit:,} tokens a minute, and this request alone may take {asked:,}. "
        "Ask for a shorter answer (max_tokens) or send a shorter prompt."
    )
    return Refused(Problem(429, message, "tokens", None, _RATE), "tokens")


def at_once(key: str, limit: int) -> Refused:
    """As many requests run as may."""
    message = f"{_whose(key)} may have {limit:,} requests running at once, and has. Try again when one has ended."
    return Refused(Problem(429, message, "requests", None, _RATE, _SOON_S), "parallel")


def no_price(budget: Budget, model: str) -> Refused:
    """It would count for a budget in dollars, and nobody knows for how much."""
    message = (
        f"What {model!r} costs is not known, and {budget_text(budget)} would have to count it. "
        "Set one (press cost price set VENDOR/MODEL --prompt USD --completion USD; `press show` names both), or remove "
        "the budget."
    )
    return Refused(Problem(429, message, _QUOTA, None, _QUOTA), "price")


def over_budget(budget: Budget, left: int, held: int, need: int, anew: datetime | None, at: float) -> Refused:
    """The worst case does not fit into what is left of a budget, less what running requests hold of it."""
    if need > budget.amount:
        # It does not get better by waiting.
        message = (
            f"This request may take {amount_text(need, budget.unit)}, more than the whole of {budget_text(budget)}: it "
            "never fits. Ask for a shorter answer (max_tokens), send a shorter prompt, or have the budget raised."
        )
        return Refused(Problem(429, message, _QUOTA, None, _QUOTA), "budget")
    free = max(left - held, 0)
    message = (
        f"You exceeded {budget_text(budget)}: {amount_text(free, budget.unit)} of it "
        f"{'is' if free == 1 or budget.unit is Unit.USD else 'are'} left"
        f"{f', and {amount_text(held, budget.unit)} held by running requests' if held > 0 else ''}; "
        f"this request may take {amount_text(need, budget.unit)}."
    )
    if need <= left:
        # Once these have ended there may be room: what they hold is their worst case.
        message += f" Try again in {_SOON_S} s."
        return Refused(Problem(429, message, _QUOTA, None, _QUOTA, _SOON_S), "budget")
    seconds = None
    if anew is not None:
        message += f" It begins anew at {anew:%Y-%m-%d %H:%M} UTC."
        seconds = max(1, math.ceil(anew.timestamp() - at))
    return Refused(Problem(429, message, _QUOTA, None, _QUOTA, seconds), "budget")


def owner_gone() -> Refused:
    """Nobody who may decide can be asked at present."""
    problem = server_error(
        503, "Limits and budgets cannot be checked at present.", code="budget_unavailable", retry_after_s=_SOON_S
    )
    return Refused(problem, "budget")


def _whose(key: str) -> str:
    return f"The key {key!r}" if key else "Whoever asks without a key"
