"""Where bytes wait for the commit that names them: `.pressroom/tmp/hub`.

    <sha256>.whole       a file that came complete and is what its client declared; kept for a day, so that a push that
                         was cut need not send it again
    *.part, commit-*     under way; gone with the process that made them

A file is written under a name of its own and renamed when it is whole and synced. What a killed server left is removed
when the next one opens the spool.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pressroom.kernel import LockedError, StoreError, StoreFullError, Workspace

_WHOLE = re.compile(r"[0-9a-f]{64}\.whole")
_KEPT_S = 24 * 3600.0
_SWEEP_EVERY_S = 3600.0
# Left free for everything else on the disk.
_RESERVE = 64 << 20


class Spool:
    """The spool of one workspace. Thread-safe."""

    def __init__(self, workspace: Workspace) -> None:
        self._dir = workspace.path("tmp", "hub")
        self._held = ExitStack()
        self._swept = time.monotonic()
        try:
            self._held.enter_context(workspace.lock("hub", purpose="take what clients push"))
        except LockedError:
            pass  # another server of this workspace takes it, too: what lies there may be in use
        else:
            self._sweep(everything=True)

    def room_for(self, size: int) -> None:
        """Raise StoreFullError where the disk has no room for `size` more bytes."""
        free = shutil.disk_usage(self._dir).free
        if size + _RESERVE > free:
            raise StoreFullError(
                f"there is no room for {size:,} bytes: {max(0, free - _RESERVE):,} are free",
                hint="Make room on the machine of the hub (`press rm REF`, `press gc`), and push again.",
                needed=size,
                free=free,
            )

    def part(self) -> Path:
        """A path for a file under way; the caller makes and removes it."""
        if time.monotonic() - self._swept > _SWEEP_EVERY_S:
            self._swept = time.monotonic()
            self._sweep(everything=False)
        return self._dir / f"{uuid.uuid4().hex}.part"

    def folder(self, kind: str) -> Path:
        """A new empty folder; the caller removes it. Raises as `writing`."""
        folder = self._dir / f"{kind}-{uuid.uuid4().hex}"
        with self.writing():
            folder.mkdir()
        return folder

    def keep(self, part: Path, sha256: str) -> None:
        """Take a file that is whole under its SHA-256."""
        with self.writing():
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(self._whole(sha256))

    def get(self, sha256: str) -> Path | None:
        """The whole file with that SHA-256, or None."""
        path = self._whole(sha256)
        return path if path.is_file() else None

    def drop(self, sha256: str) -> None:
        self._whole(sha256).unlink(missing_ok=True)

    def close(self) -> None:
        self._held.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Say plainly what a disk refuses.

        Raises:
            StoreFullError, StoreError: in place of an OSError.
        """
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StoreFullError(
                    "the disk of the hub is full", hint="Make room there (`press rm REF`, `press gc`), and push again."
                ) from error
            raise StoreError(
                f"the hub cannot write to {self._dir}: {error.strerror or error}", hint="Check that directory."
            ) from error

    def _whole(self, sha256: str) -> Path:
        assert re.fullmatch(r"[0-9a-f]{64}", sha256)
        return self._dir / f"{sha256}.whole"

    def _sweep(self, *, everything: bool) -> None:
        """Remove whole files that nobody named for a day; with `everything` also what was under way."""
        for path in self._dir.iterdir():
            try:
                if _WHOLE.fullmatch(path.name):
                    if time.time() - path.stat().st_mtime > _KEPT_S:
                        path.unlink(missing_ok=True)
                elif everything:
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            except OSError:  # it takes room, and does no other harm
                continue
