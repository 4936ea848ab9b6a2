"""The workspace: one directory that holds a team's models, its database and what runs.

`press` looks upward from the current directory for `pressroom.toml` or `.pressroom/`; without either, the workspace is
the current directory. All embedded parts live in its `.pressroom/`:

    .pressroom/
      pressroom.db     the database            locks/   one file a lock
      store/           the bytes               logs/    one folder an engine
      tmp/             downloads under way     run/     what the running server says of itself
      reserve          room for removing something when the disk is full
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pressroom.kernel import locks, settings
from pressroom.kernel.errors import WorkspaceError
from pressroom.kernel.events import Events

if TYPE_CHECKING:
    from pressroom.kernel.database import Database

DIRECTORY = ".pressroom"
# Enough for what databases write when a version is removed. It is not taken from the last of the room.
_RESERVE = "reserve"
_RESERVE_BYTES = 1 << 20
_RESERVE_SHARE = 4


class Workspace:
    """Settings, database, locks and events of one workspace. Use it with `with`, or `close()` it."""

    def __init__(self, root: Path, config: settings.Settings) -> None:
        self.root = root
        self.settings = config
        self.events = Events()
        self.dir = root / DIRECTORY

    @classmethod
    def open(cls, start: Path | None = None, *, environ: Mapping[str, str] | None = None) -> Workspace:
        """Find the workspace at or above `start` (default: PRESSROOM_WORKSPACE, else the current directory).

        Raises:
            SettingsError: a setting is wrong.
            WorkspaceError: the directory is not there or cannot be written.
        """
        environ = os.environ if environ is None else environ
        explicit = environ.get(settings.WORKSPACE_VARIABLE)
        if start is None and explicit:
            root = Path(explicit).expanduser().absolute()
            if not root.is_dir():
                raise WorkspaceError(
                    f"{settings.WORKSPACE_VARIABLE}={explicit!r} is not a directory",
                    hint="Create it, or unset the variable to use the current directory.",
                )
        else:
            root = _find(Path.cwd() if start is None else start.absolute())
        file = root / settings.FILE_NAME
        config = settings.load(file if file.exists() else None, environ)
        if config.offline:
            # Libraries used further down look at these when they are imported.
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
            os.environ.setdefault("PIP_NO_INDEX", "1")
        workspace = cls(root, config)
        try:
            workspace.dir.mkdir(exist_ok=True)
            ignored = workspace.dir / ".gitignore"
            if not ignored.exists():  # on a full disk it could not be written anew
                ignored.write_text("*\n", encoding="utf-8")
            elif not os.access(workspace.dir, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise WorkspaceError(
                f"the workspace {workspace.dir} cannot be written: {error.strerror}",
                hint=f"Choose another place with {settings.WORKSPACE_VARIABLE}=DIRECTORY.",
            ) from error
        return workspace

    @cached_property
    def database(self) -> Database:
        from pressroom.kernel.database import Database  # SQLAlchemy takes 0.13 s to import

        return Database(self.settings.database, root=self.root)

    def path(self, *parts: str) -> Path:
        """A directory below `.pressroom/`, made if it is not there."""
        path = self.dir.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def keep_reserve(self) -> None:
        """Put some bytes aside, for the moment when the disk is full: removing something needs room, too."""
        path = self.dir / _RESERVE
        with suppress(OSError):
            if not path.exists() and shutil.disk_usage(self.dir).free > _RESERVE_SHARE * _RESERVE_BYTES:
                path.write_bytes(os.urandom(_RESERVE_BYTES))  # zeros take no room on some file systems

    @contextmanager
    def spending_reserve(self) -> Iterator[None]:
        """For what makes room: on a full disk the bytes put aside are free for the block, and put aside again after it
        where there is room then."""
        with suppress(OSError):
            if shutil.disk_usage(self.dir).free < _RESERVE_BYTES:
                (self.dir / _RESERVE).unlink()
        try:
            yield
        finally:
            self.keep_reserve()

    def lock(self, name: str, *, purpose: str, wait_s: float | None = 0.0) -> AbstractContextManager[None]:
        """A lock between all processes that use this workspace; see `pressroom.kernel.locks`."""
        return locks.locked(self.path("locks") / f"{name}.lock", purpose=purpose, wait_s=wait_s)

    def lock_holder(self, name: str) -> dict[str, object] | None:
        """Who holds the lock `name`, as {pid, purpose, since}, or None."""
        return locks.holder(self.dir / "locks" / f"{name}.lock")

    def close(self) -> None:
        if "database" in self.__dict__:
            self.database.close()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _find(start: Path) -> Path:
    for directory in (start, *start.parents):
        if (directory / settings.FILE_NAME).exists() or (directory / DIRECTORY).is_dir():
            return directory
    return start
