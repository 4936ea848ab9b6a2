"""Repositories and revisions, as clients name them, and names and versions, as the registry does.

`smollm2` and `local/smollm2` are the model `smollm2`; `org/name` is a model of that name. `main` is the version that
was pushed or registered last; a number, an alias and the first 40 hex digits of a version's digest (or 7 and more of
them) are revisions, too.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

import sqlalchemy as sa

from pressroom.kernel import NotFoundError, Workspace, did_you_mean, is_name
from pressroom.registry.base import Version
from pressroom.registry.hub import _tables as tables
from pressroom.registry.hub._refusals import bad_request, repo_not_found, revision_not_found
from pressroom.registry.registry import Registry

#: The namespace of models whose name has none. Clients insist on one in the links they are given.
NAMESPACE = "local"
MAIN = "main"
#: The commit of a repository without a version.
NO_COMMIT = "0" * 40

_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_MAIN = (MAIN, "HEAD", "refs/heads/main")


def commit_of(version: Version) -> str:
    return version.digest.removeprefix("sha256-")[:40]


def name_of(repo_id: str) -> str:
    """The registry's name for what a client calls a repository.

    Raises:
        HubError: 404, it cannot be the name of one.
    """
    name = repo_id.removeprefix(f"{NAMESPACE}/")
    if not is_name(name) or ("/" in name and name != repo_id):
        raise repo_not_found(repo_id, "Names use letters, digits, '.', '_' and '-', and at most one '/'.")
    return name


def full_id(name: str) -> str:
    """The name with a namespace."""
    return name if "/" in name else f"{NAMESPACE}/{name}"


@dataclass(frozen=True, slots=True)
class Repository:
    """A name with its versions, oldest first; none where nothing was pushed yet. `head` is where `main` is."""

    name: str
    versions: tuple[Version, ...]
    head: Version | None
    created: float

    @property
    def commit(self) -> str:
        return commit_of(self.head) if self.head is not None else NO_COMMIT

    def at(self, revision: str) -> Version | None:
        """The version that a revision means; None is `main` before the first push.

        Raises:
            HubError: 404, there is no such revision.
        """
        if revision in _MAIN:
            return self.head
        wanted = revision.removeprefix("refs/tags/")
        for version in self.versions:
            if wanted == str(version.number) or wanted in version.aliases:
                return version
        plain = wanted.removeprefix("sha256-").lower()
        if _COMMIT.fullmatch(plain):
            found = [version for version in self.versions if version.digest[7:].startswith(plain)]
            if found:
                return found[-1]
            if plain == NO_COMMIT and self.head is None:
                return None
        known = [MAIN, *(str(v.number) for v in self.versions), *(a for v in self.versions for a in v.aliases)]
        raise revision_not_found(
            self.name, revision[:200], did_you_mean(wanted[:64], known, otherwise=f"It has {', '.join(known[:20])}.")
        )


class Repositories:
    """The repositories of one workspace. Thread-safe."""

    def __init__(self, workspace: Workspace, registry: Registry) -> None:
        self._database = workspace.database
        self._database.migrate("hub", tables.MIGRATIONS)
        self._registry = registry

    def find(self, name: str) -> Repository:
        """The repository of a registry name.

        Raises:
            HubError: 404, there is none.
        """
        versions: tuple[Version, ...] = ()
        hint = ""
        try:
            versions = tuple(self._registry.list(name))
        except NotFoundError as error:
            hint = error.hint
        with self._database.reading() as connection:
            row = connection.execute(
                sa.select(tables.repositories).where(tables.repositories.c.name == name)
            ).one_or_none()
        if not versions and row is None:
            raise repo_not_found(name, hint)
        if not versions:
            return Repository(name, (), None, row.created if row is not None else 0.0)
        return Repository(name, versions, _head(versions, row), min(version.created for version in versions))

    def all(self) -> list[Repository]:
        """Every repository that has a version that is no data, by name."""
        with self._database.reading() as connection:
            rows = {row.name: row for row in connection.execute(sa.select(tables.repositories))}
        grouped: dict[str, list[Version]] = {}
        for version in self._registry.list():
            if version.kind != "data":  # texts and rows are kept like models, and are none
                grouped.setdefault(version.name, []).append(version)
        return [
            Repository(name, tuple(found), _head(tuple(found), rows.get(name)), min(v.created for v in found))
            for name, found in sorted(grouped.items())
        ]

    def create(self, name: str) -> bool:
        """Make a name known before its first push; False where it is already."""
        if not is_name(name):
            raise bad_request(
                f"{name!r} cannot name a model",
                "Names use letters, digits, '.', '_' and '-', and start with a letter or a digit.",
            )
        with self._database.begin() as connection:
            known = sa.select(tables.repositories.c.name).where(tables.repositories.c.name == name)
            if connection.execute(known).first() is not None:
                return False
            connection.execute(tables.repositories.insert().values(name=name, created=time.time()))
        return not self._exists(name)

    def remove_empty(self, name: str) -> None:
        """Forget a name that nothing was pushed to."""
        with self._database.begin() as connection:
            connection.execute(tables.repositories.delete().where(tables.repositories.c.name == name))

    def set_head(self, name: str, version: Version) -> None:
        """Let `main` be this version until a newer one is registered."""
        values = {"head_number": version.number, "head_at": time.time()}
        same = tables.repositories.c.name == name
        with self._database.begin() as connection:
            if not connection.execute(tables.repositories.update().where(same).values(**values)).rowcount:
                connection.execute(tables.repositories.insert().values(name=name, created=time.time(), **values))

    def _exists(self, name: str) -> bool:
        try:
            return bool(self._registry.list(name))
        except NotFoundError:
            return False


def _head(versions: tuple[Version, ...], row: sa.Row[tuple[object, ...]] | None) -> Version:
    newest = versions[-1]
    if row is not None and row.head_at is not None and row.head_at >= newest.created:
        return next((version for version in versions if version.number == row.head_number), newest)
    return newest
