"""The messages of leases as lists for JSON, their kind first, for a pipe between processes of one machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from pressroom.gateway.money.base import Budget, Period, Scope, Unit
from pressroom.gateway.money.leases import (
    Answer,
    Ask,
    FromOwner,
    FromWorker,
    Hello,
    Recall,
    Refusal,
    Report,
    Seen,
    Spent,
    Welcome,
)

_KINDS: tuple[type[Any], ...] = (Hello, Ask, Report, Welcome, Answer, Recall, Seen)
_NAMES = {kind: kind.__name__.lower() for kind in _KINDS}
#: What the lists of `packed` begin with.
KINDS = frozenset(_NAMES.values())


def packed(message: FromWorker | FromOwner) -> list[Any]:
    """A message as a list for JSON, its kind first."""
    kind = type(message)
    return [_NAMES[kind], *(_plain(getattr(message, field.name)) for field in fields(kind))]


def unpacked(found: Any) -> FromWorker | FromOwner:
    """The message that `packed` made a list of. Raises ValueError where it is none."""
    try:
        name, *values = found
        return _READ[name](*values)
    except (TypeError, KeyError, IndexError) as error:
        raise ValueError(f"not a message between owner and worker: {error!r}") from error


def _plain(value: Any) -> Any:
    """Dataclasses as lists, without the names of their fields: these travel with every request's worth of money."""
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, (Spent, Refusal, Budget)):
        return [_plain(getattr(value, field.name)) for field in fields(value)]
    return value


def _resource(value: Any) -> tuple[str, ...]:
    return tuple(str(each) for each in value)


def _amounts(values: Any) -> tuple[tuple[tuple[str, ...], int], ...]:
    return tuple((_resource(resource), int(amount)) for resource, amount in values)


def _spent(values: Any) -> tuple[Spent, ...]:
    return tuple(
        Spent((str(key), str(team), str(model), int(day)), int(tokens), int(nano_usd))
        for (key, team, model, day), tokens, nano_usd in values
    )


def _budget(scope: str, name: str, unit: str, period: str, amount: int) -> Budget:
    return Budget(scope=Scope(scope), name=name, unit=Unit(unit), period=Period(period), amount=int(amount))


_READ: dict[str, Callable[..., FromWorker | FromOwner]] = {
    "hello": lambda session, pid, lines, balances: Hello(str(session), int(pid), _spent(lines), _amounts(balances)),
    "ask": lambda number, needs, limits, forced, at: Ask(
        int(number),
        tuple((_resource(resource), int(least), int(best), int(whole)) for resource, least, best, whole in needs),
        (limits[0], limits[1], limits[2]),
        bool(forced),
        float(at),
    ),
    "report": lambda number, seen, recalled, lines, balances, returned: Report(
        int(number), int(seen), int(recalled), _spent(lines), _amounts(balances), _amounts(returned)
    ),
    "welcome": lambda lease_s, budgets: Welcome(float(lease_s), tuple(_budget(*each) for each in budgets)),
    "answer": lambda number, grant, granted, refusal: Answer(
        int(number), int(grant), _amounts(granted), None if refusal is None else Refusal(*refusal)
    ),
    "recall": lambda number, resources: Recall(int(number), tuple(_resource(each) for each in resources)),
    "seen": lambda number: Seen(int(number)),
}
