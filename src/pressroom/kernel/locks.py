"""Locks between processes: `flock` on a file, released by the kernel when the holder ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pressroom.kernel.errors import LockedError

_POLL_S = 0.05


@contextmanager
def locked(path: Path, *, purpose: str, wait_s: float | None = 0.0) -> Iterator[None]:
    """Hold the lock for the block. `wait_s` is how long to wait for another holder (None: for ever).

    Raises:
        LockedError: another process still holds it after that; the message says which, and what for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # O_CLOEXEC (Python's default): a child must not keep the lock alive after its parent died.
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _acquire(fd, path, purpose, wait_s)
        _describe(fd, {"pid": os.getpid(), "purpose": purpose, "since": time.time()})
        try:
            yield
        finally:
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def holder(path: Path) -> dict[str, object] | None:
    """Who holds the lock, as {pid, purpose, since}; None when nobody does."""
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        # A shared lock: two askers must not take each other for the holder.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _described(fd)
    else:
        return None
    finally:
        os.close(fd)


def _acquire(fd: int, path: Path, purpose: str, wait_s: float | None) -> None:
    # At least a moment: somebody asking who the holder is (`holder`) has the file for an instant.
    deadline = None if wait_s is None else time.monotonic() + max(wait_s, 4 * _POLL_S)
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if deadline is not None and time.monotonic() >= deadline:
            found = _described(fd)
            raise LockedError(
                f"cannot {purpose}: process {found.get('pid', '?')} holds {path.name} "
                f"to {found.get('purpose', 'work')}",
                hint="Wait for it to finish, or end that process.",
                lock=str(path),
                holder=found,
            )
        time.sleep(_POLL_S)


def _describe(fd: int, holder: dict[str, object]) -> None:
    """Write down who holds the lock. On a full disk nobody learns it: making room needs locks, too."""
    os.ftruncate(fd, 0)
    try:
        os.pwrite(fd, json.dumps(holder).encode(), 0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


def _described(fd: int) -> dict[str, object]:
    try:
        found = json.loads(os.pread(fd, 4096, 0) or b"{}")
    except ValueError:  # the holder is writing it at this moment
        return {}
    return found if isinstance(found, dict) else {}
