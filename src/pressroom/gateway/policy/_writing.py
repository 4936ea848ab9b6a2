"""A policy as people write it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pressroom.gateway.policy.base import Policy, When


def written(policy: Policy) -> dict[str, Any]:
    """The tables of a deployment file that `policy` came from; defaults are left out."""
    found: dict[str, Any] = {}
    if policy.split or policy.sticky:
        found["split"] = {**policy.split, **({"sticky": True} if policy.sticky else {})}
    if policy.order is not None:
        found["fallback"] = {"order": list(policy.order)}
    if policy.retry != type(policy)().retry:
        found["retry"] = {"attempts": policy.retry.attempts, "backoff_s": policy.retry.backoff_s}
    if policy.breaker != type(policy)().breaker:
        found["breaker"] = {"failures": policy.breaker.failures, "pause_s": policy.breaker.pause_s}
    if policy.hedge_after_s is not None:
        found["hedge"] = {"after_s": policy.hedge_after_s}
    limits = {"first_token_s": policy.limits.first_token_s, "total_s": policy.limits.total_s}
    if stated := {name: value for name, value in limits.items() if value is not None}:
        found["limits"] = stated
    if policy.shadow is not None:
        found["shadow"] = {"branch": policy.shadow.branch, "share": policy.shadow.share}
    if policy.rules:
        found["rule"] = [
            {
                "when": _when(rule.when),
                **({"only": list(rule.only)} if rule.only else {}),
                **({"prefer": list(rule.prefer)} if rule.prefer else {}),
            }
            for rule in policy.rules
        ]
    if not policy.default_rule:
        found["rules"] = {"default": False}
    return found


def _when(when: When) -> dict[str, Any]:
    found: dict[str, Any] = {name: True for name in ("personal_data", "secret") if getattr(when, name)}
    for name in ("language", "tag", "key", "team"):
        if values := getattr(when, name):
            found[name] = list(values)
    if when.longer_than is not None:
        found["longer_than"] = when.longer_than
    return found
