"""Aliases: names that point to one version of a model, and move only for who may, to what meets the floor.

Each move is one transaction that holds the alias and its row in the history: both are there or neither is, also after
`kill -9` and with two at once. A refusal is written down before it is raised.
"""

from __future__ import annotations

import os
import pwd
import re
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import sqlalchemy as sa

from pressroom.kernel import AccessError, Keys, NotFoundError, Workspace, did_you_mean
from pressroom.registry import _tables as tables
from pressroom.registry import history
from pressroom.registry._rows import checked_text, read_versions
from pressroom.registry.base import Move, PromotionError, Version
from pressroom.registry.floors import Bound, Check, check_all, check_possible

_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# What a client of the hub may ask for as a revision and means something else by: its commits, and the newest version.
_NO_ALIAS = re.compile(r"\d+|main|[0-9a-f]{40}")


class Aliases:
    """The aliases, floors and history of one workspace; `Registry` offers them."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._database = workspace.database

    @cached_property
    def _keys(self) -> Keys:
        return Keys(self._workspace)  # looks after its table, which few that open a registry need

    def promote(self, version: Version, alias: str, *, why: str = "", key: str | None = None) -> Move:
        """Let the alias point to this version.

        Raises:
            AccessError: the key may not, or one is needed and none was given. On record.
            PromotionError: the sheet does not meet the floor. On record.
            NotFoundError: the version was removed meanwhile.
        """
        checked_alias(alias)
        who = self._who("promote", version.name, alias, why, key, to=version)
        with self._database.begin() as connection:
            _alone(connection)
            of_name = read_versions(connection, version.name)
            now = next((v for v in of_name if v.number == version.number and v.digest == version.digest), None)
            if now is None:
                raise NotFoundError(
                    f"{version.name}:{version.number} was removed", hint="`press list` shows what is left."
                )
            before = next((v for v in of_name if alias in v.aliases), None)
            checks = check_all(_bounds(connection, version.name, alias), now, _parent(connection, now))
            failed = [check for check in checks if not check.met]
            move = _move(
                "refused" if failed else "promoted",
                version.name,
                alias,
                who,
                why,
                before=before,
                after=now,
                details={"checks": [check.as_dict() for check in checks]},
            )
            if failed:
                move.details["reason"] = "; ".join(check.reason for check in failed)
                history.record(connection, move)
            elif before is None or before.number != now.number:
                _point(connection, now, alias, move.at)
                history.record(connection, move)
        if failed:
            raise PromotionError(
                f"{version.name}:{version.number} does not meet the floor of {alias}: {move.details['reason']}",
                hint=" ".join(dict.fromkeys(check.hint for check in failed)),
                ref=str(version.ref),
                alias=alias,
                checks=move.details["checks"],
            )
        return move

    def demote(self, name: str, alias: str, *, why: str = "", key: str | None = None) -> Move:
        """Let the alias point to nothing.

        Raises:
            AccessError: as for `promote`. On record.
            NotFoundError: there is no such alias.
        """
        who = self._who("demote", name, alias, why, key)
        with self._database.begin() as connection:
            _alone(connection)
            of_name = read_versions(connection, name)
            before = next((v for v in of_name if alias in v.aliases), None)
            if before is None:
                known = sorted(known for v in of_name for known in v.aliases)
                raise NotFoundError(
                    f"{name} has no alias {alias!r}",
                    hint=did_you_mean(alias, known, otherwise=f"Its aliases: {', '.join(known) or 'none'}."),
                    asked=f"{name}:{alias}",
                )
            connection.execute(tables.aliases.delete().where(_is(tables.aliases, name, alias)))
            move = _move("demoted", name, alias, who, why, before=before)
            history.record(connection, move)
        return move

    def checks(self, version: Version, alias: str) -> list[Check]:
        """The floor of the alias held against the sheet of this version, without moving anything."""
        with self._database.reading() as connection:
            return check_all(_bounds(connection, version.name, alias), version, _parent(connection, version))

    def floor(self, name: str, alias: str | None = None) -> dict[str, list[Bound]]:
        """The bounds of each alias of a model that has some, or of one alias."""
        with self._database.reading() as connection:
            query = sa.select(tables.floors.c.alias).where(tables.floors.c.name == name).distinct()
            known = sorted(connection.scalars(query))
            return {each: _bounds(connection, name, each) for each in known if alias in (None, each)}

    def set_floor(
        self,
        name: str,
        alias: str,
        bounds: Sequence[Bound],
        *,
        remove: Iterable[str] = (),
        why: str = "",
        key: str | None = None,
    ) -> list[Bound]:
        """Add bounds, each in place of one of its figure and sense, and take away those of the figures in `remove`.

        Returns the floor as it is then. The version that the alias points to now stays: a floor is about moves.

        Raises:
            AccessError: as for `promote`. On record.
            NotFoundError: there is no such model, or a figure in `remove` has no bound.
            FloorError: no sheet could meet the floor; it stays what it was.
        """
        checked_alias(alias)
        who = self._who("change the floor of", name, alias, why, key)
        gone = list(dict.fromkeys(remove))
        with self._database.begin() as connection:
            _alone(connection)
            known = [*connection.scalars(sa.select(tables.names.c.name))]
            if name not in known:
                hint = did_you_mean(name, known, otherwise="`press list` shows what is registered.")
                raise NotFoundError(f"there is no model called {name!r}", hint=hint, asked=name, known=known)
            before = _bounds(connection, name, alias)
            unknown = [figure for figure in gone if figure not in {bound.figure for bound in before}]
            if unknown:
                raise NotFoundError(
                    f"the floor of {name}:{alias} has no bound for {', '.join(unknown)}",
                    hint=f"It has: {', '.join(map(str, before)) or 'none'}.",
                    asked=unknown,
                )
            of_floor = _is(tables.floors, name, alias)
            taken = [bound for bound in before if bound.figure in gone]
            for bound in taken:
                connection.execute(tables.floors.delete().where(of_floor & (tables.floors.c.figure == bound.figure)))
            for bound in bounds:
                same = (tables.floors.c.figure == bound.figure) & (tables.floors.c.sense == bound.sense)
                connection.execute(tables.floors.delete().where(of_floor & same))
                connection.execute(
                    tables.floors.insert().values(
                        name=name, alias=alias, figure=bound.figure, sense=bound.sense, bound=bound.text
                    )
                )
            after = _bounds(connection, name, alias)
            if bounds:
                check_possible(after)
            for action, changed in (("floor removed", taken), ("floor set", list(bounds))):
                if changed:
                    details = {
                        "bounds": [str(bound) for bound in changed],
                        "before": [str(bound) for bound in before],
                        "after": [str(bound) for bound in after],
                    }
                    history.record(connection, _move(action, name, alias, who, why, details=details))
        return after

    def history(self, name: str | None = None, alias: str | None = None) -> list[Move]:
        """Every move and refusal of a model and an alias, or of all of them, oldest first."""
        with self._database.reading() as connection:
            return history.read(connection, name, alias)

    def _who(
        self, doing: str, name: str, alias: str, why: str, secret: str | None, *, to: Version | None = None
    ) -> str:
        """Who asks, where they may; a refusal goes on record."""
        checked_text(why, "the reason")
        local = f"local:{_user()}"
        who = f"{local}, with an unknown key" if secret else local
        try:
            if secret:
                known = self._keys.find(secret)
                who = f"key:{known.name}" if known else who
                return f"key:{self._keys.require(secret, 'promote', name).name}"
            if not self._keys.any("promote"):
                return local
            raise AccessError(
                f"a key is needed to {doing} {name}:{alias}: there are keys with the right to promote",
                hint="Give one with --key, or in the environment as PRESS_KEY.",
                model=name,
                alias=alias,
            )
        except AccessError as error:
            with self._database.begin() as connection:
                before = next((v for v in read_versions(connection, name) if alias in v.aliases), None)
                details = {"reason": error.message, "asked": doing}
                history.record(
                    connection, _move("refused", name, alias, who, why, before=before, after=to, details=details)
                )
            raise


def checked_alias(alias: str) -> str:
    """The alias, where it can be one. Raises PromotionError."""
    if not _ALIAS.fullmatch(alias) or _NO_ALIAS.fullmatch(alias):
        raise PromotionError(
            f"{alias!r} cannot be an alias",
            hint="Letters, digits, '.', '_' and '-', at most 64, beginning with a letter or a digit; not a number, not "
            "'main' (the newest version, on the hub), not 40 hexadecimal digits (a commit there).",
            asked=alias,
        )
    return alias


def holding(version: Version) -> str | None:
    """Why a version may not be removed: the aliases that point to it, or None."""
    if not version.aliases:
        return None
    first = version.aliases[0]
    names = " and ".join(f"{version.name}:{alias}" for alias in version.aliases)
    return f"{names} {'points' if len(version.aliases) == 1 else 'point'} to it (`press demote {version.name} {first}`)"


def _alone(connection: sa.Connection) -> None:
    """One mover at a time; SQLite's BEGIN IMMEDIATE sees to that already."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("LOCK TABLE aliases IN SHARE ROW EXCLUSIVE MODE"))


def _is(table: sa.Table, name: str, alias: str) -> sa.ColumnElement[bool]:
    return (table.c.name == name) & (table.c.alias == alias)


def _bounds(connection: sa.Connection, name: str, alias: str) -> list[Bound]:
    query = sa.select(tables.floors).where(_is(tables.floors, name, alias))
    rows = connection.execute(query.order_by(tables.floors.c.figure, tables.floors.c.sense)).all()
    return [Bound.parse(f"{row.figure}={row.bound}", row.sense) for row in rows]


def _parent(connection: sa.Connection, version: Version) -> Version | None:
    """The version whose digest is the parent's; of several with equal files the one with the most figures."""
    if version.parent is None:
        return None
    names = sa.select(tables.versions.c.name).where(tables.versions.c.digest == version.parent).distinct()
    found = [
        each
        for name in sorted(connection.scalars(names))
        for each in read_versions(connection, name)
        if each.digest == version.parent
    ]
    return max(found, key=lambda each: len(each.sheet), default=None)


def _point(connection: sa.Connection, version: Version, alias: str, at: float) -> None:
    same = _is(tables.aliases, version.name, alias)
    values = {"number": version.number, "at": at}
    if not connection.execute(tables.aliases.update().where(same).values(**values)).rowcount:
        connection.execute(tables.aliases.insert().values(name=version.name, alias=alias, **values))


def _move(
    action: str,
    name: str,
    alias: str,
    who: str,
    why: str,
    *,
    before: Version | None = None,
    after: Version | None = None,
    details: dict[str, Any] | None = None,
) -> Move:
    return Move(
        at=time.time(),
        name=name,
        alias=alias,
        action=action,
        who=who,
        why=why,
        from_number=before.number if before else None,
        from_digest=before.digest if before else None,
        to_number=after.number if after else None,
        to_digest=after.digest if after else None,
        details=details or {},
    )


def _user() -> str:
    """Who runs this process: by the system's own word, not by a variable that anybody may set."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid-{os.getuid()}"
