"""The file that `press batch` writes: one writer at a time, and rewritten whole or not at all."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from pressroom.gateway.batches._disk import breathe, writing
from pressroom.gateway.batches._results import ResultFile
from pressroom.gateway.batches.base import BatchError, Outcome
from pressroom.kernel import LockedError
from pressroom.kernel.disk import sync, sync_directory

_BREATH_LINES = 64


class OutFile:
    """Results in `path`, locked until `close`.

    Raises:
        LockedError: another process writes it.
        BatchError: it is no file of results.
        StoreError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.resolve()
        if self._path.exists() and not self._path.is_file():
            raise BatchError(f"{path} is not a file that results can be appended to", hint="Name another with --out.")
        self._fd = self._locked()
        self._file = ResultFile(self._path, fd=self._fd)
        try:
            self._check_kind()
        except BaseException:
            self.close()
            raise

    def recover(self, seen: Callable[[dict[str, Any]], None]) -> None:
        """Tell `seen` every result; what a killed writer left half-written is cut off, and nothing else is."""
        self._file.recover(seen, careful=True)

    def append(self, outcomes: list[Outcome]) -> None:
        """Add these, durably."""
        self._file.append(outcomes)

    def without(self, unwanted: Callable[[dict[str, Any]], bool]) -> None:
        """Write it anew without some results. Who reads it sees the old or the new one; the lock stays. Call `recover`
        after it."""
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}.partial")
        with writing(partial):
            fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, self._mode())
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            with writing(partial), os.fdopen(os.dup(fd), "wb") as file, self._path.open("rb") as before:
                for number, line in enumerate(before):
                    if not unwanted(orjson.loads(line)):
                        file.write(line)
                    if not number % _BREATH_LINES:
                        breathe()
                file.flush()
                sync(fd)
                partial.replace(self._path)
                sync_directory(self._path.parent)
        except BaseException:
            os.close(fd)
            with suppress(OSError):
                partial.unlink()
            raise
        self._file.close()
        self._fd = fd
        self._file = ResultFile(self._path, fd=fd)

    def close(self) -> None:
        self._file.close()

    def _locked(self) -> int:
        while True:
            with writing(self._path):
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(fd)
                raise LockedError(
                    f"another process writes {self._path}",
                    hint="Wait for it to finish, or name another file with --out.",
                    path=str(self._path),
                ) from error
            # Its writer may have put a new file in its place between the two lines above.
            with suppress(FileNotFoundError):
                if self._path.stat().st_ino == os.fstat(fd).st_ino:
                    return fd
            os.close(fd)

    def _mode(self) -> int:
        return stat.S_IMODE(os.fstat(self._fd).st_mode)

    def _check_kind(self) -> None:
        """Before anything is cut off: that it is ours. A file with one torn line and nothing else is."""
        start = os.pread(self._fd, 64, 0)
        ours = b'{"id":"batch_req_'
        if start and not start.startswith(ours[: len(start)]):
            raise BatchError(
                f"{self._path} has something else in it than results",
                hint="Name another file with --out; nothing in this one was changed.",
                path=str(self._path),
            )
