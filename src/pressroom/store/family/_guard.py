"""Who may be at work at once: any number that put, or one that sweeps."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pressroom.kernel.errors import LockedError, StoreError

_POLL_S = 0.05
# A sweep waits so long for those who put; whoever puts waits for a sweep as long as it takes, which is short.
SWEEP_WAIT_S = 60.0


@contextmanager
def putting(home: Path) -> Iterator[None]:
    """Held while a file is put: no tensor that is found in the index goes before the file refers to it."""
    with _held(home / "puts.lock", fcntl.LOCK_SH, None, ""):
        yield


@contextmanager
def sweeping(home: Path, wait_s: float) -> Iterator[None]:
    """Held while a sweep decides what goes.

    Raises:
        LockedError: somebody has been putting files for `wait_s` seconds.
    """
    with _held(home / "puts.lock", fcntl.LOCK_EX, wait_s, "puts files"):
        yield


@contextmanager
def one_sweep(home: Path) -> Iterator[None]:
    """Held for the whole of a sweep. Raises LockedError where another one runs."""
    with _held(home / "sweep.lock", fcntl.LOCK_EX, 0.0, "sweeps the store"):
        yield


@contextmanager
def _held(path: Path, how: int, wait_s: float | None, doing: str) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(
            f"the lock {path} cannot be made: {error.strerror}",
            hint="Check that the directory of the store may be written by this user, and the disk has room.",
            path=str(path),
        ) from error
    try:
        deadline = None if wait_s is None else time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, how if deadline is None else how | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                assert deadline is not None
                if time.monotonic() >= deadline:
                    raise LockedError(
                        f"the store cannot be swept: another process {doing}",
                        hint="Wait for it to finish, then try again.",
                        lock=str(path),
                    ) from error
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(fd)
