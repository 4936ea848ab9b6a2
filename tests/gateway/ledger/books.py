"""What several tests of the ledger use: workspaces with a setting changed, rows, and what is in the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pressroom.gateway.ledger import Counted, JournalLedger, Outcome, Row, open_ledger, spent
from pressroom.kernel import Workspace

#: 2026-11-21 12:00 UTC.
NOON = 1_795_262_400.0


def workspace(root: Path, **settings: Any) -> Workspace:
    """A workspace whose `[ledger]` says this."""
    root.mkdir(parents=True, exist_ok=True)
    environ = {f"PRESSROOM_LEDGER_{name.upper()}": str(value) for name, value in settings.items()}
    return Workspace.open(root, environ=environ)


def running(place: Workspace, **options: Any) -> JournalLedger:
    ledger = open_ledger(place, **options)
    ledger.recover()
    ledger.start()
    return ledger


def unfolded(place: Workspace) -> JournalLedger:
    """One that only writes its journal."""
    ledger = open_ledger(place)
    ledger.recover()
    ledger._journal.start()
    ledger._started = True
    return ledger


def row(
    id: str, *, at: float = NOON, asked: int = 100, answered: int = 20, nano_usd: int = 1_500, **fields: Any
) -> Row:
    made = Row(id, at)
    made.key, made.team, made.model = "ci", "search", "smollm2"
    made.ref, made.digest, made.engine, made.door = "smollm2:3", "sha256-" + "a" * 64, "llamacpp", "chat"
    made.status, made.counted, made.tries = 200, Counted.STATED, 1
    made.prompt_tokens, made.completion_tokens, made.nano_usd = asked, answered, nano_usd
    made.first_s, made.total_s = 0.12, 0.5
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def open_one(ledger: JournalLedger, id: str, *, at: float = NOON) -> bool:
    return ledger.opened(id, at, "ci", "search", "smollm2", 4_000, 60_000)


def table(place: Workspace, query: str = "select * from ledger order by number") -> list[dict[str, Any]]:
    with place.database.reading() as connection:
        return [dict(found._mapping) for found in connection.execute(sa.text(query))]


def spending(place: Workspace) -> dict[tuple[str, str, str], tuple[int, int]]:
    return {(each.scope, each.name, each.period): (each.tokens, each.nano_usd) for each in spent(place)}


def summed(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], tuple[int, int]]:
    """What `spending` must be, from the rows alone, the slow way."""
    from datetime import UTC, datetime

    found: dict[tuple[str, str, str], tuple[int, int]] = {}
    for each in rows:
        if each["counted"] == "none" or each["cache"]:
            continue
        tokens = 0 if each["kind"] == "correction" else each["prompt_tokens"] + each["completion_tokens"]
        day = datetime.fromtimestamp(each["at"], UTC).strftime("%Y-%m-%d")
        for scope, name in (("key", each["key"]), ("team", each["team"]), ("deployment", each["model"]), ("all", "")):
            for period in (day, day[:7], "total"):
                if name or scope == "all":
                    before = found.get((scope, name, period), (0, 0))
                    found[scope, name, period] = (before[0] + tokens, before[1] + each["nano_usd"])
    return found


__all__ = ["NOON", "Outcome", "open_one", "row", "running", "spending", "summed", "table", "unfolded", "workspace"]
