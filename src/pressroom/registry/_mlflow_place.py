"""Which workspace a `pressroom:` URI means, and the part of it behind that.

    pressroom:///srv/models            the workspace /srv/models
    pressroom:///srv/models/3/run/…    a folder of artifacts in it; MLflow writes such URIs itself
    pressroom://                       the workspace of the current directory
    pressroom:3/run/…                  a folder of artifacts in that

The workspace is the deepest folder of the path that has `pressroom.toml` or `.pressroom/`.
"""

from __future__ import annotations

import functools
import os
import posixpath
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

from pressroom.kernel import SettingsError, Workspace, WorkspaceError
from pressroom.registry import _mlflow_tables as tables
from pressroom.registry.registry import Registry

SCHEME = "pressroom"
# Upper parts keep versions from being removed, too: an entry point of this group is a class that is made with the
# workspace and has `holding(version)`, as `pressroom.deploy.Deployments`.
HOLDERS = "pressroom.holders"
# Behind it comes the digest of a version; MLflow's own folders begin with the number of an experiment.
VERSIONS = ".versions"


@dataclass(frozen=True, slots=True)
class Place:
    """An opened workspace, its registry, and a path of artifacts in it ("": their root)."""

    workspace: Workspace
    registry: Registry
    path: str

    def uri(self, path: str) -> str:
        """The URI of a path of artifacts, which means the same wherever it is used."""
        return f"{SCHEME}://{self.workspace.root}/{path}"


def opened(uri: str) -> Place:
    """The place of a URI. Workspaces stay open: MLflow makes an object for each file it writes.

    Raises:
        SettingsError: it is not such a URI.
        WorkspaceError: there is no workspace on its path.
    """
    root, path = located(uri)
    workspace, registry = _opened(root, os.getpid())
    return Place(workspace, registry, path)


def located(uri: str) -> tuple[Path, str]:
    """The root of the workspace, and the path of artifacts. Raises as `opened` does."""
    parts = urlsplit(uri)
    if parts.scheme != SCHEME or parts.netloc or parts.query or parts.fragment or "\\" in parts.path:
        raise SettingsError(
            f"{uri!r} is not a URI of Pressroom",
            hint="Write pressroom:///absolute/path/of/the/workspace, or pressroom:// for the one you are in.",
            asked=uri,
        )
    if not parts.path.startswith("/"):
        return _current(), checked_path(parts.path)
    path = Path(posixpath.normpath(parts.path))
    if ".." in parts.path.split("/"):
        raise SettingsError(f"{uri!r} climbs out of its folder", hint="Write the path without '..'.", asked=uri)
    for root in (path, *path.parents):
        if _is_workspace(root):
            inner = path.relative_to(root).as_posix()
            return root, "" if inner == "." else inner
    raise WorkspaceError(
        f"there is no workspace on the path {path}",
        hint="A workspace has pressroom.toml or .pressroom/: run `press list` in its folder once.",
        asked=uri,
    )


def checked_path(path: str) -> str:
    """The path of an artifact in its plain form. Raises SettingsError where it is none."""
    plain = posixpath.normpath(path) if path else ""
    plain = "" if plain == "." else plain
    if plain.startswith(("/", "..")) or "\0" in plain or len(plain) > 1000:
        raise SettingsError(f"{path[:200]!r} is not the path of an artifact", hint="Relative, at most 1000 characters.")
    return plain


def _is_workspace(root: Path) -> bool:
    return (root / "pressroom.toml").exists() or (root / ".pressroom").is_dir()


def _current() -> Path:
    with Workspace.open() as workspace:
        return workspace.root


@functools.lru_cache(maxsize=8)
def _opened(root: Path, process: int) -> tuple[Workspace, Registry]:
    """A fork must not use its parent's connections: `process` keeps them apart."""
    workspace = Workspace.open(root)
    registry = Registry(workspace)
    workspace.database.migrate("mlflow", tables.MIGRATIONS)
    registry.holders.extend(entry.load()(workspace).holding for entry in entry_points(group=HOLDERS))
    return workspace, registry
